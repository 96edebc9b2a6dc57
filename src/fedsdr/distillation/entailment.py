"""Entailment between raw response and rewrite, judged by a natural language inference model.

The paper counts the rewrites that do not entail the ground truth (arXiv 2605.18028: about 47 %).
So the default direction takes the rewrite as the premise and the raw response as the
hypothesis: what is lost or contradicted is refused, and a rewrite may still say more. The other
direction refuses what is added, and with it most rewrites that elaborate; both together ask
for equivalence. The instruction before both texts, and both directions, are those of semantic
entropy (Kuhn et al., ICLR 2023, arXiv 2302.09664), where answers are too short to stand alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record
from fedsdr.distillation.checks import Candidate, RewriteCheck, Verdict
from fedsdr.model.base import choose_device, context_positions
from fedsdr.recipe.sections.distill import Entailment

KEY: Final = "distill.entailment"


class TextPair(NamedTuple):
    """What must hold the hypothesis if the premise does."""

    premise: str
    hypothesis: str


Score = Callable[[Sequence[TextPair]], list[float | None]]  # probabilities; None: too long to read


def entailment_judge(options: Entailment, score: Score) -> RewriteCheck:
    """Refuses what the model finds less likely than the threshold, or could not read whole."""
    directions = [
        name
        for name in ("rewrite_entails_raw", "raw_entails_rewrite")
        if options.direction in (name, "both")
    ]

    def judge(candidates: Sequence[Candidate]) -> list[Verdict]:
        rows = [
            score([_texts(each.record, each.rewrite.text, name, options) for each in candidates])
            for name in directions
        ]
        return [_verdict(directions, each, options) for each in zip(*rows, strict=True)]

    return judge


def _texts(record: Record, rewrite: str, direction: str, options: Entailment) -> TextPair:
    before = f"{record.instruction}\n" if options.question else ""
    raw, new = before + record.response, before + rewrite
    return TextPair(new, raw) if direction == "rewrite_entails_raw" else TextPair(raw, new)


def _verdict(
    directions: Sequence[str], found: Sequence[float | None], options: Entailment
) -> Verdict:
    known = {name: p for name, p in zip(directions, found, strict=True) if p is not None}
    if len(known) < len(directions):
        return Verdict("not_checked", known)
    entailed = all(p >= options.threshold for p in known.values())
    return Verdict("" if entailed else "not_entailed", known)


def check_entailment(options: Entailment, device: str) -> None:
    """Raise the errors of `load_entailment` that cost little, before any work starts."""
    if not options.model:
        raise UserError(
            f'the check "entailment" needs {KEY}.model: give the folder or hub name of a natural '
            "language inference model"
        )
    choose_device(options.device or device)
    config = _from_pretrained(AutoConfig, options.model, "config")
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise UserError(
            f"{KEY}.model = {options.model!r} is not a sequence classifier but "
            f"{', '.join(kinds) or 'of no known kind'}: give a natural language inference model"
        )
    _label(config, options)
    _tokenizer(options.model)


def load_entailment(options: Entailment, device: str) -> Score:
    """Load the model, frozen, onto its device."""
    check_entailment(options, device)
    tokenizer = _tokenizer(options.model)
    model, loading = _from_pretrained(
        AutoModelForSequenceClassification, options.model, "model", output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"the weights of {KEY}.model = {options.model!r} lack {missing[0]!r}: give a folder "
            "saved from a sequence classifier"
        )
    if model.config.pad_token_id is None:  # decoders find the last token by it
        model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False).eval().to(choose_device(options.device or device))
    room = min(options.max_length, tokenizer.model_max_length, context_positions(model.config))
    label = _label(model.config, options)

    def score(pairs: Sequence[TextPair]) -> list[float | None]:
        found: list[float | None] = [None] * len(pairs)
        encoded = [tokenizer(*pair) for pair in pairs]
        sizes = [len(each["input_ids"]) for each in encoded]
        order = sorted((i for i, size in enumerate(sizes) if size <= room), key=sizes.__getitem__)
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            inputs = tokenizer.pad([encoded[i] for i in batch], return_tensors="pt")
            for i, p in zip(batch, _probabilities(model, inputs, label), strict=True):
                found[i] = p
        return found

    return score


@torch.no_grad()
def _probabilities(model: Any, inputs: Any, label: int) -> list[float]:
    logits = model(**inputs.to(model.device)).logits  # (B, classes)
    return list(logits.float().softmax(-1)[:, label].tolist())


def _label(config: Any, options: Entailment) -> int:
    """The index of the class that means entailment."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    found = [index for index, name in names.items() if name.lower() == options.label.lower()]
    if len(found) != 1:
        raise UserError(
            f"{KEY}.model = {options.model!r} has no class {options.label!r}: its classes are "
            f"{', '.join(names.values())}; name the one that means entailment by {KEY}.label"
        )
    return found[0]


def _tokenizer(path: str) -> Any:
    tokenizer = _from_pretrained(AutoTokenizer, path, "tokenizer")
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {KEY}.model = {path!r} has no pad_token, so pairs could not be "
            "batched: set it in tokenizer_config.json"
        )
    return tokenizer


def _from_pretrained(loader: Any, path: str, what: str, **options: Any) -> Any:
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise UserError(f"{KEY}.model = {path!r} is not a folder: give a Hugging Face model folder")
    try:
        return loader.from_pretrained(path, **options)
    except Exception as error:  # transformers and safetensors raise what they like
        raise UserError(f"cannot load the {what} of {KEY}.model = {path!r}: {error}") from error
