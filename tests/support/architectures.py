"""A tiny random model of every causal architecture of transformers, and what it must do."""

import dataclasses
import re
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fedsdr.core.adapters import B_SUFFIX
from fedsdr.core.errors import UserError
from fedsdr.data.batches import Batch, collate_examples, end_to_end
from fedsdr.data.example import Example
from fedsdr.generation import streaming as stream
from fedsdr.generation.batched import generate_batch, generation_mode
from fedsdr.generation.sampling import Job
from fedsdr.model import experts
from fedsdr.model.checkpointing import checkpointed_blocks, recompute_activations
from fedsdr.model.layers import linear_layers
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.packing import packed_attention
from fedsdr.model.peft_format import settings_of, write_adapter
from fedsdr.model.trials import check_causal, pads_rightly, passes_trial, plain_logits, same_logits
from fedsdr.training.loss import summed_loss
from fedsdr.training.trial import check_learns
from support.repository import REPOSITORY
from support.tiny_models import random_adapter

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 64
# Whichever of these a configuration has; transformers' names for a size differ.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embedding_dim": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "emb_dim": 32, "input_embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "dff": 48, "decoder_ffn_dim": 48,
    "ffn_hidden_size": 48, "dim_ff": 48, "encoder_ffn_dim": 48, "intermediate_size_mlp": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_blocks": 2,
    "decoder_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "decoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "num_key_value_heads": 2, "rotary_dim": 4, "index_head_dim": 8, "index_n_heads": 2,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 4, "d_inner": 48,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 4,
    "head_dim": 8, "dim_head": 8, "global_head_dim": 8,
    "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128, "context_length": 128,
    "sliding_window": 4, "attention_window_size": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_num_experts": 4, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "moe_ffn_hidden_size": 16, "num_shared_experts": 1, "n_shared_experts": 1,
    "moe_num_shared_experts": 1, "num_dense_layers": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "qk_head_dim": 8,
    "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_n_groups": 1, "mamba_expand": 2, "lru_width": 32,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_heads": 4, "linear_head_dim": 8,
    "is_decoder": True,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    **{
        name: {"layer_types": ["linear_attention", "full_attention"]}
        for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    },
    **{
        name: {"text_config": {"layer_types": ["linear_attention", "full_attention"]}}
        for name in ("qwen3_5", "qwen3_5_moe")
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "longcat_flash": {"head_dim": 4},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}


TOWERS = "has towers for images or sound, of which no tiny one is built; its text model is {}"
UNTRIED = {
    "blt": "reads bytes in patches; no tiny configuration of it is consistent",
    "dots3_note": TOWERS.format("dots3_note_text"),
    "fuyu": TOWERS.format("persimmon"),
    "gemma3": TOWERS.format("gemma3_text"),
    "gemma3n": TOWERS.format("gemma3n_text"),
    "gemma4_unified": TOWERS.format("gemma4_unified_text"),
    "got_ocr2": TOWERS.format("qwen2"),
    "moss_transcribe_diarize": TOWERS.format("qwen3"),
    "gemma4_assistant": "drafts tokens for another model, whose states it needs",
    "gemma4_unified_assistant": "drafts tokens for another model, whose states it needs",
    "musicgen": "writes codes of sound, not text",
    "musicgen_melody": "writes codes of sound, not text",
}


def tiny_config(name: str) -> Any:
    return _config(CONFIG_MAPPING[name], SPECIAL.get(name, {}))


def _config(kind: type[PreTrainedConfig], special: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    given = {key: value for key, value in SIZES.items() if key in known}
    if "qk_rope_head_dim" in known:  # heads of two parts
        given.pop("head_dim", None)
        given["num_key_value_heads"] = 4
    parts = {
        key: _config(part, special.get(key, {}))
        for key, part in kind.sub_configs.items()
        if key in known and dataclasses.is_dataclass(part) and part is not PreTrainedConfig
    }
    return kind(**(given | special | parts))


def tiny_model(name: str) -> Any:
    """In evaluation mode, with weights so large that logits differ by token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
        for path, weight in model.named_parameters():
            if weight.dim() > 1 and not re.search("conv|A_log", path):
                weight.data.normal_(0, 0.2)
    return model.requires_grad_(False)


EXAMPLES = (
    Example((5, 6, 7), (8, 9, 10, 2)),
    Example((11, 12, 13, 14, 15, 16, 17, 18), (19, 20, 21, 22, 2)),
)
PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (12, 13), (14, 15, 16, 17, 18, 19, 20, 21, 22, 23))
NEVER = 63


@dataclass(frozen=True)
class Row:
    """What an architecture is trained and run by, or why it is refused."""

    name: str
    training: str = "-"
    generation: str = "-"
    checkpointing: str = "-"
    layers: str = "-"
    note: str = ""

    def __str__(self) -> str:
        return f"| {' | '.join(getattr(self, field.name) for field in fields(self))} |"


def conform(name: str) -> Row:
    """Try one architecture; raises AssertionError where something is wrong and not refused."""
    if name in UNTRIED:
        return Row(name, note=f"not tried: {UNTRIED[name]}")
    model = tiny_model(name)
    try:
        check_causal(model, name)
        two = TwoStreamModel(model, "all-linear", 2, 4.0)
        check_learns(two, checkpointing=False)
    except UserError as error:
        return Row(name, note=f"refused: {str(error).removeprefix(f'model.path = {name!r}: ')}")
    two.detach()
    _writes_what_it_likes(model)
    base = plain_logits(model, PROMPTS[0])
    two = TwoStreamModel(model, "all-linear", 2, 4.0)
    for seed, each in enumerate((Stream.RECTIFY, Stream.SMOOTH)):
        two.load(each, random_adapter(two.blank(), seed))
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    training, unused = _trains_alike(two)
    checkpointing = _checkpoints(two)
    two.activate(Stream.RECTIFY)
    wanted = plain_logits(model, PROMPTS[0])
    settings = settings_of(two, "base")
    adapted, adapter = two.paths, two.read(Stream.RECTIFY)
    two.detach()
    assert torch.equal(plain_logits(model, PROMPTS[0]), base)
    layers = f"{len(adapted)} of {len(linear_layers(model))}"
    note = experts.experts_notice(model, adapted)
    if unused:
        note += f"{'; ' if note else ''}text does not pass through {unused} of them"
    generation = generation_mode(model)
    with TemporaryDirectory() as folder:
        write_adapter(Path(folder), adapter, settings)
        peft = PeftModel.from_pretrained(model, folder)
    assert same_logits(plain_logits(peft, PROMPTS[0]), wanted), "PEFT computes something else"
    return Row(name, training, generation, checkpointing, layers, note)


@torch.no_grad()
def _writes_what_it_likes(model: Any) -> None:
    """Greedy tokens are the likeliest ones of the plain forward pass."""
    texts = generate_batch(model, [Job(prompt, 6) for prompt in PROMPTS], NEVER)
    alone = list(stream.TokenStream(model).generate(PROMPTS[0], 6, NEVER))
    for prompt, text in [*zip(PROMPTS, texts, strict=True), (PROMPTS[0], alone)]:
        logits = plain_logits(model, [*prompt, *text])
        for place, token in enumerate(text, start=len(prompt) - 1):
            best = logits[place].max()
            assert logits[place, token] >= best - 1e-3 * logits[place].abs().max(), "generation"


def _trains_alike(two: TwoStreamModel) -> tuple[str, int]:
    """How batches are computed, and how many layers have no gradient."""
    alone = [_gradient(two, collate_examples([each], 0)) for each in EXAMPLES]
    wanted = {key: alone[0][key] + alone[1][key] for key in alone[0]}
    unused = sum(not wanted[key].any() for key in wanted if key.endswith(B_SUFFIX))
    padded = passes_trial(two.model, pads_rightly)
    if padded:
        _check_close(_gradient(two, collate_examples(EXAMPLES, 0)), wanted, "padded is not alone")
    if two.packing.possible:
        _check_close(_gradient(two, end_to_end(EXAMPLES)), wanted, "packed is not alone")
        return "end to end", unused
    return ("padded" if padded else "one by one"), unused


def _checkpoints(two: TwoStreamModel) -> str:
    if not checkpointed_blocks(two.model):
        return "refused"
    batch = collate_examples(EXAMPLES[:1], 0)
    _check_close(_gradient(two, batch, True), _gradient(two, batch), "checkpointed is not plain")
    return "yes"


def _gradient(two: TwoStreamModel, batch: Batch, again: bool = False) -> dict[str, torch.Tensor]:
    """The loss, and its slopes by R's factors."""
    parameters = two.train_only(Stream.RECTIFY)
    with recompute_activations(two.model, again), packed_attention(two.model, bool(batch.lengths)):
        loss = summed_loss(two.model, batch)
        slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    two.train_only(None)
    return {"loss": loss.detach(), **dict(zip(parameters, slopes, strict=True))}


def _check_close(found: Any, wanted: Any, what: str) -> None:
    norm = sum(float(each.square().sum()) for each in wanted.values()) ** 0.5
    apart = sum(float((found[key] - wanted[key]).square().sum()) for key in wanted) ** 0.5
    assert apart <= 1e-3 * norm, what
    assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-3), what


HEAD = """| architecture | batches in training | generation | checkpointing | adapted | remarks |
|---|---|---|---|---|---|
"""
BEGIN, END = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
DOCUMENT = REPOSITORY / "docs" / "models.md"


def table_in(text: str) -> dict[str, str]:
    """The rows of the document, by architecture."""
    rows = text.partition(BEGIN)[2].partition(END)[0].removeprefix(HEAD).splitlines()
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def main() -> None:
    """Try every architecture and write the document's table anew."""
    rows = []
    for name in NAMES:
        try:
            print(row := conform(name), flush=True)
        except Exception as error:
            raise SystemExit(f"{name}: {error!r}") from error
        rows.append(f"{row}\n")
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(
        before + BEGIN + HEAD + "".join(rows) + END + rest.partition(END)[2], "utf-8"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
