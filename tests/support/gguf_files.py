"""GGUF files of a tiny random Llama, and wheels that hold one."""

import zipfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

HEADS, WIDTH, INNER, LAYERS = 4, 32, 64, 2
WORDS = "red green blue one two three cat dog bird sees likes near and the a is not < >".split()
SPECIALS = ("<unk>", "<s>", "</s>")
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def tiny_gguf(
    path: Path,
    quantised: bool = True,
    eos: bool = True,
    without: str = "",
    architecture: str = "llama",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Write one, in Q8_0 where that is possible; returns the weights that it holds.

    eos: whether its tokenizer has a token for the end. without: a tensor that is left out.
    """
    tokens, merges = _vocabulary()
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    kinds = [TokenType.CONTROL] * len(SPECIALS)
    writer.add_token_types(kinds + [TokenType.NORMAL] * (len(tokens) - len(SPECIALS)))
    writer.add_bos_token_id(1)
    if eos:
        writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    weights = {k: v for k, v in _weights(len(tokens), seed).items() if k != without}
    for name, value in weights.items():
        if quantised and value.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _vocabulary() -> tuple[list[str], list[str]]:
    """Bytes as GPT-2 writes them, and merges that make whole words, with a space before them."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    tokens, merges = [*SPECIALS, *letters], []
    for word in WORDS:
        whole = "Ġ"
        for letter in word:
            if whole + letter not in tokens:
                merges.append(f"{whole} {letter}")
                tokens.append(whole + letter)
            whole += letter
    return tokens, merges


def _weights(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return draw.normal(0, 0.4, (rows, columns)).astype(np.float32)

    weights = {"token_embd.weight": matrix(vocabulary, WIDTH)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[f"{block}{part}.weight"] = matrix(WIDTH, WIDTH)
        weights[f"{block}ffn_gate.weight"] = matrix(INNER, WIDTH)
        weights[f"{block}ffn_up.weight"] = matrix(INNER, WIDTH)
        weights[f"{block}ffn_down.weight"] = matrix(WIDTH, INNER)
        for norm in ("attn_norm", "ffn_norm"):
            weights[f"{block}{norm}.weight"] = np.ones(WIDTH, np.float32)
    return weights | {
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": matrix(vocabulary, WIDTH),
    }


def wheel_with(path: Path, *files: Path, **texts: str) -> Path:
    """A wheel that pip takes, named by `path`: name-version-py3-none-any.whl.

    texts: further files, as name=content.
    """
    name, version = path.name.split("-")[:2]
    described = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"{name}/{file.name}")
        for inner, text in texts.items():
            archive.writestr(f"{name}/{inner}.py", text)
        archive.writestr(
            f"{described}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{described}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{described}/RECORD", "")
    return path
