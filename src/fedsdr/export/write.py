"""Writing an export: all checks first, then the folder, atomically."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from transformers import GenerationConfig

from fedsdr.core import files
from fedsdr.core.adapters import A_SUFFIX, Adapter, layer_paths
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.data.template import ChatFormat
from fedsdr.export.adapter import exported_adapter
from fedsdr.export.card import Artefact, is_folder, write_card
from fedsdr.export.merge import check_mergeable, merge_adapter
from fedsdr.model.base import DTYPES, load_chat
from fedsdr.model.identity import chat_identity
from fedsdr.model.peft_format import AdapterSettings, write_adapter
from fedsdr.workflows.finished import GLOBAL_MODEL, Finished, open_base
from fedsdr.workflows.prepare import plan_folder


@dataclass(frozen=True)
class ExportChoice:
    """What to export.

    model: a name of `Finished.model_names`. merged: whole weights instead of an adapter.
    dtype: of what is written; "" is the run's (merged) or the adapter's own.
    base: what to call the base model instead of where the run had it; "" keeps that.
    client_names: whether the card may name clients.
    """

    model: str = GLOBAL_MODEL
    merged: bool = False
    dtype: str = ""
    base: str = ""
    client_names: bool = False


def export_model(run: Finished, choice: ExportChoice, out: Path, reporter: Reporter) -> Artefact:
    """Write the folder `out`: weights, tokenizer with chat template, generation_config.json,
    README.md.

    A personal model's folder is its owner's alone (modes 0700 and 0600). Raises `UserError`
    before anything is written.
    """
    check_target(out)
    if choice.dtype and choice.dtype not in DTYPES:
        raise UserError(f"--dtype {choice.dtype!r}: choose from {', '.join(DTYPES)}")
    adapter, settings = exported_adapter(run, choice.model)
    if choice.merged:
        check_mergeable(run.recipe)
    settings = _renamed(settings, choice.base)
    content = (_merged if choice.merged else _adapter_alone)(
        run, choice, adapter, settings, reporter
    )
    artefact = Artefact(
        choice.model, choice.merged, settings.base_model, content.dtype, _ranks(adapter),
        settings.alpha / settings.rank, content.chat.date,
    )  # fmt: skip
    _, client = run.place(choice.model)

    def write(folder: Path) -> None:
        folder.mkdir(mode=0o700 if client else 0o777)
        content.write_weights(folder)
        save_tokenizer(content.chat, folder)
        write_card(folder, run, artefact, choice.client_names)
        if client:
            for path in folder.rglob("*"):
                path.chmod(0o700 if path.is_dir() else files.PRIVATE)

    if not files.write_folder(out, write):
        raise UserError(f"{out} was created by another process meanwhile: give another --out")
    if client:
        reporter.say(f"{out} holds a client's private stream: it is that client's alone")
    if is_folder(artefact.base):
        reporter.say(f"it calls its base model {artefact.base}: --base gives a public name")
    return artefact


class _Content(NamedTuple):
    """What is exported. write_weights: into a folder, with generation_config.json."""

    chat: ChatFormat
    dtype: str
    write_weights: Callable[[Path], None]


def _merged(
    run: Finished, choice: ExportChoice, adapter: Adapter, settings: AdapterSettings,
    reporter: Reporter,
) -> _Content:  # fmt: skip
    """The base model with the adapter merged into its weights."""
    base = open_base(run, reporter)
    dtype = choice.dtype or str(base.model.dtype).removeprefix("torch.")
    merge_adapter(base.model, adapter, settings.alpha / settings.rank, DTYPES[dtype])
    base.model.generation_config = answer_settings(base.chat)
    return _Content(base.chat, dtype, base.model.save_pretrained)


def _adapter_alone(
    run: Finished, choice: ExportChoice, adapter: Adapter, settings: AdapterSettings,
    reporter: Reporter,
) -> _Content:  # fmt: skip
    """The adapter in PEFT's format, without loading the base model."""
    with plan_folder(run.recipe, reporter) as path:
        chat = load_chat(path, run.recipe.model)
    run.check_base(chat_identity(chat), reporter)
    dtype = choice.dtype or str(next(iter(adapter.values())).dtype).removeprefix("torch.")
    converted = {key: tensor.to(DTYPES[dtype]) for key, tensor in adapter.items()}
    _, client = run.place(choice.model)

    def write(folder: Path) -> None:
        write_adapter(folder, converted, settings, private=bool(client))
        answer_settings(chat).save_pretrained(folder)

    return _Content(chat, dtype, write)


def check_target(out: Path) -> None:
    """Raise `UserError` where `out` exists."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already and nothing is written over: give another --out")


def save_tokenizer(chat: ChatFormat, folder: Path) -> None:
    """The tokenizer, with the run's chat template as its default; its other templates are kept.

    One called "default" that is another is kept as "original".
    """
    own = chat.tokenizer.chat_template
    chat.tokenizer.chat_template = chat.template
    if isinstance(own, dict):
        first = own.get("default", chat.template)
        other = {} if first == chat.template else {"original": first}
        chat.tokenizer.chat_template = {**own, **other, "default": chat.template}
    try:
        chat.tokenizer.save_pretrained(folder)
    finally:
        chat.tokenizer.chat_template = own


def _renamed(settings: AdapterSettings, base: str) -> AdapterSettings:
    return replace(settings, base_model=base) if base else settings


def answer_settings(chat: ChatFormat) -> GenerationConfig:
    """With these, plain `generate` answers as the run does: greedily, until any end of a turn.

    The base model's own settings are not among them: its penalties, bans, forced tokens and least
    lengths act on greedy answers too.
    """
    pad = chat.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False, eos_token_id=sorted(chat.ends), bos_token_id=chat.tokenizer.bos_token_id,
        pad_token_id=chat.end_of_turn if pad is None else pad,
    )  # fmt: skip


def _ranks(adapter: Adapter) -> tuple[int, int]:
    ranks = [adapter[path + A_SUFFIX].shape[0] for path in layer_paths(adapter)]
    return min(ranks), max(ranks)
