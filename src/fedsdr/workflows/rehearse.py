"""What the clients of a method rehearse: made once, before the first round."""

from pathlib import Path

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import REHEARSED_FILE
from fedsdr.core.progress import Reporter
from fedsdr.data.example import Example
from fedsdr.distillation.rehearsal import generate_rehearsal
from fedsdr.federation.loaded import LoadedRun
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.rehearsal import Rehearsal
from fedsdr.workflows.distill import base_teacher
from fedsdr.workflows.prepare import rewrite_cache


def rehearse_all(
    loaded: LoadedRun, method: Method, reporter: Reporter, folder: Path | None = None
) -> list[Example]:
    """The same examples for all clients, and a file of them in the method's folder.

    folder: of the cache; the user's common one where it is None.
    """
    recipe = method.recipe
    with rewrite_cache(folder) as cache:
        rehearsed = generate_rehearsal(
            base_teacher(loaded), recipe.rehearsal, recipe.distill, cache, recipe.seed,
            loaded.prompts,
        )  # fmt: skip
    rows = [{"prompt": each.prompt, "answer": each.answer} for each in rehearsed]
    files.write_json_lines(method.folder / REHEARSED_FILE, rows)
    encoded = (each.example(loaded.base.chat, loaded.max_length) for each in rehearsed)
    examples = [example for example in encoded if example is not None]
    if not examples:
        raise UserError(
            f"rehearsal: no prompt of {len(rehearsed)} leaves room for an answer within "
            f"{loaded.max_length} tokens: lower rehearsal.prompt_tokens, or raise model.max_length"
        )
    few = "" if loaded.prompts else _few_words(len(examples), recipe.rehearsal)
    reporter.say(f"rehearsal: {len(examples)} prompts with the base model's answers{few}")
    return examples


def _few_words(count: int, options: Rehearsal) -> str:
    """What helps where few prompts are left, which are then learnt by heart."""
    if 2 * count >= options.count:
        return ""
    return (
        f", of rehearsal.count = {options.count}: the others were not ended within "
        f"rehearsal.prompt_tokens = {options.prompt_tokens}, were repeated, or left no room for an "
        "answer. Raise that, lower rehearsal.count, or set rehearsal.share = 0"
    )
