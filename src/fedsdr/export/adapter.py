"""One PEFT adapter for any model of a run: what W0 + R + S adds to W0, as one low-rank pair.

    (alpha/r) (B_R A_R + B_S A_S) = (alpha/r) [B_R B_S] [A_R; A_S]

of rank r_R + r_S: nothing is approximated, and plain PEFT loads it with one call.
"""

from collections.abc import Collection

from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.products import stack_components
from fedsdr.model.peft_format import AdapterSettings, read_settings
from fedsdr.workflows.finished import BASE_MODEL, Finished


def join_streams(parts: Collection[Adapter]) -> Adapter:
    """The streams of one model as one adapter, in the dtypes of the first."""
    first, *others = parts
    if not others:
        return dict(first)
    total = stack_components([(part, 1.0) for part in parts])
    return {key: tensor.to(first[key].dtype) for key, tensor in total.items()}


def exported_adapter(run: Finished, name: str) -> tuple[Adapter, AdapterSettings]:
    """The adapter of the model called `name`, and its settings for PEFT.

    Read from the run folder alone: no base model is loaded.
    """
    if name == BASE_MODEL:
        raise UserError(
            f"the base model has no adapter to export: choose from "
            f"{', '.join(run.model_names()[1:])}"
        )
    places = run.adapter_folders(name)
    return join_streams(run.adapters(name).values()), read_settings(next(iter(places.values())))
