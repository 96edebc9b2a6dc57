"""A model of a finished run as a transformers or PEFT model in this process."""

from typing import Any, NamedTuple

from fedsdr.core.progress import Reporter
from fedsdr.export.adapter import exported_adapter
from fedsdr.export.merge import check_mergeable, merge_adapter
from fedsdr.export.write import answer_settings
from fedsdr.model.peft_format import attach_adapter
from fedsdr.workflows.finished import BASE_MODEL, Finished, open_base


class OpenedModel(NamedTuple):
    """A transformers model, a `PeftModel` where it has an adapter, and its tokenizer."""

    model: Any
    tokenizer: Any


def open_model(run: Finished, name: str, merged: bool, reporter: Reporter) -> OpenedModel:
    """Load the model called `name`, frozen, in evaluation mode, with the run's greedy decoding.

    merged: add the adapter to the weights, which keep their dtype. Raises `UserError` for an
    unknown name, and for a merge into quantised weights, before the base model is loaded.
    """
    run.check(name)
    if merged:
        check_mergeable(run.recipe)
    adapted = None if name == BASE_MODEL else exported_adapter(run, name)
    base = open_base(run, reporter)
    model, tokenizer = base.model, base.chat.tokenizer
    model.generation_config = answer_settings(base.chat)
    tokenizer.chat_template = base.chat.template
    if adapted:
        adapter, settings = adapted
        if merged:
            merge_adapter(model, adapter, settings.alpha / settings.rank, model.dtype)
        else:
            model = attach_adapter(model, adapter, settings)
    return OpenedModel(model, tokenizer)
