"""How many clients are best trained at once: what memory allows, where padding costs little."""

from collections.abc import Sequence
from typing import Final

from fedsdr.estimate.memory import held_activations, logits_bytes
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.fit import free_memory
from fedsdr.model.lora import TwoStreamModel
from fedsdr.model.outline import model_outline
from fedsdr.recipe.sections.recipe import Recipe

SHARE: Final = 0.5  # of the free memory: allocators, libraries and the server want some too
FLOATS: Final = 4 * 7  # bytes a parameter of a client: three streams, gradient, moments, the start


def best_cohort(loaded: LoadedRun, recipe: Recipe, lengths: Sequence[int]) -> int:
    """1 where the padding that even two clients at once would need is dear; else as many as fit.

    lengths: tokens of the examples that are trained on. One client alone is trained end to end.
    """
    if loaded.model.packing.pays(typical_lengths(lengths, 2 * rows_of(recipe))):
        return 1
    return cohort_that_fits(loaded, recipe, max(lengths))


def typical_lengths(lengths: Sequence[int], rows: int) -> list[int]:
    """Lengths of a batch that is like all of them: one of each of `rows` equal parts, sorted."""
    known = sorted(lengths)
    return [known[(2 * part + 1) * len(known) // (2 * rows)] for part in range(rows)]


def rows_of(recipe: Recipe) -> int:
    """Examples of a client in one pass."""
    local = recipe.local
    return min(local.micro_batch or local.batch_size, local.batch_size)


def cohort_that_fits(loaded: LoadedRun, recipe: Recipe, longest: int) -> int:
    """At least 1, and that where the system does not tell its memory or the model is not traced.

    longest: tokens of the longest example that is trained on.
    """
    free = free_memory(loaded.model.device)
    each = bytes_of_a_client(loaded, recipe, longest)
    return 1 if free is None or each is None else max(1, int(SHARE * free / each))


def bytes_of_a_client(loaded: LoadedRun, recipe: Recipe, longest: int) -> int | None:
    """Activations and logits of its longest (micro-)batch, and its adapters while they learn."""
    lora, model, rows = recipe.lora, loaded.base.model, rows_of(recipe)
    two = TwoStreamModel(
        model_outline(loaded.base.path).to(model.dtype),
        lora.targets,
        lora.rank,
        lora.alpha,
        lora.layers,
    )
    held = held_activations(two, rows, longest, recipe.model.gradient_checkpointing, lora.dropout)
    if held is None:
        return None
    vocabulary = int(model.config.get_text_config().vocab_size)
    logits = logits_bytes(rows * longest, vocabulary, model.dtype, recipe.has_teacher)
    adapters: int = sum(tensor.numel() for tensor in loaded.model.blank().values())
    return held + logits + FLOATS * adapters
