"""What a recipe chooses from the tables of algorithms and transforms, with the options of each."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from fedsdr.algorithms.contract import (
    CROSS_ENTROPY,
    Algorithm,
    Loss,
    NoOptions,
    Options,
    Setup,
)
from fedsdr.algorithms.soft import Soft
from fedsdr.algorithms.table import TABLES, AlgorithmRow
from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.recipe import Recipe

# Before the name of an algorithm that a program has given as an object: no table has it.
CUSTOM: Final = "custom:"


class Choice(NamedTuple):
    name: str
    row: AlgorithmRow
    options: Options

    def build(self, *parts: Any) -> Algorithm:
        return self.row.build(*parts)

    def has(self, trait: str) -> bool:
        return trait in self.row.traits


class Choices(NamedTuple):
    """A recipe's row of each of `TABLES`, and the recipe itself."""

    recipe: Recipe
    algorithm: Choice
    lora_aggregation: Choice
    targets: Choice
    loss: Choice
    personalisation: Choice
    robust: Choice
    compression: Choice
    mode: Choice


def all_choices(recipe: Recipe) -> Choices:
    """What the recipe chooses from every table, with its options."""
    chosen = {key.rpartition(".")[2]: chosen_options(recipe, key) for key in TABLES}
    return Choices(recipe, **chosen)


def chosen_options(recipe: Recipe, key: str) -> Choice:
    """What the recipe chooses by a key of `TABLES`, with its options."""
    section, _, field = key.partition(".")
    name, table = getattr(getattr(recipe, section), field), TABLES[key]
    if key == "federation.algorithm" and name.startswith(CUSTOM):
        return Choice(name, _custom_row(name), NoOptions())
    if name not in table:
        raise UserError(f"{key} = {name!r} is not known: choose from {', '.join(table)}")
    return Choice(name, table[name], read_options(name, recipe.options.get(name, {})))


def _custom_row(name: str) -> AlgorithmRow:
    def build(setup: Setup, options: NoOptions) -> Algorithm:
        raise UserError(
            f"federation.algorithm = {name!r} is an object of a Python program, which a recipe "
            "cannot build: run it by fedsdr.Federation, or choose another algorithm"
        )

    return AlgorithmRow(build, "given as an object", "its program")


def check_cohort(recipe: Recipe, cohort: int) -> None:
    """Raise `UserError` where a choice needs more clients than take part in a round."""
    for key in TABLES:
        name, row, options = chosen_options(recipe, key)
        if cohort < (least := row.least(options)):
            raise UserError(
                f"{key} = {name!r} needs at least {least} clients in a round, and {cohort} take "
                f"part: change options.{name}, federation.participation, or the choice"
            )


def check_options(recipe: Recipe) -> None:
    """Every `[options.NAME]` must be right, whether NAME is chosen here, by a baseline, or not."""
    for name, given in recipe.options.items():
        read_options(name, given)


def read_options(name: str, given: Mapping[str, Any]) -> Options:
    """The options of a name in any table, from their TOML."""
    rows = {name: row for table in TABLES.values() for name, row in table.items()}
    if name not in rows:
        known = ", ".join(n for n, row in rows.items() if row.options.model_fields)
        raise UserError(f"options.{name} is not known: there are options for {known}")
    options = rows[name].options
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(options.model_fields) or "none"
        raise UserError(
            f"options.{name}.{field} = {first['input']!r}: {first['msg']} (options: {known})"
        ) from error


def stage_loss(recipe: Recipe, name: str) -> Loss:
    """The loss of this name, with the recipe's options."""
    options = read_options(name, recipe.options.get(name, {}))
    return options.loss if isinstance(options, Soft) else CROSS_ENTROPY


def has_global_model(chosen: Choices) -> bool:
    return chosen.lora_aggregation.has("global") and not chosen.algorithm.has("sends nothing")


def smaller_ranks(recipe: Recipe) -> tuple[list[int], ...]:
    """The ranks of `lora.ranks` below `lora.rank`, as a last argument where there are any."""
    smaller = {*recipe.lora.ranks.values()} - {recipe.lora.rank}
    return (sorted(smaller),) if smaller else ()
