"""Tokenizers that can write any text: byte-level BPE, SentencePiece's spaces, and a slow one."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

THINKING = ("<think>", "</think>")
MARKS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """GPT-2's kind, with a few merges. <think> and </think> are added and not special, as Qwen3
    has them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Y", "e"), ("Ye", "s"), ("<", "|"), ("i", "m")]
    pieces = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>"]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return _with_marks(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>"),
                       template)  # fmt: skip


def sentence_pieces(template: str | None = CHATML, legacy: bool = False) -> PreTrainedTokenizerFast:
    """Llama 2's kind: a space is "▁", and so is the start of a text; of every piece between
    control tokens, where `legacy`."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?-'%()[]|_<>/"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("Y", "e"), ("Ye", "s"), ("▁", "Yes")]
    control = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces = [*control, *letters, *("".join(pair) for pair in merges)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    if legacy:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return _with_marks(fast, template)


def slow_bytes(template: str | None = CHATML) -> ByT5Tokenizer:
    """Python's own, a token a byte."""
    return _with_marks(ByT5Tokenizer(extra_ids=0), template)


def _with_marks(tokenizer, template):
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in THINKING])
    tokenizer.chat_template = template
    return tokenizer


BUILDERS = {
    "bytes": byte_level,
    "pieces": sentence_pieces,
    "legacy pieces": lambda template=CHATML: sentence_pieces(template, legacy=True),
    "slow": slow_bytes,
}
