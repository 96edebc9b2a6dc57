"""Adapters on some of a model's blocks: PEFT's `layers_to_transform`.

The backward pass ends at the lowest adapted block: below it nothing needs a gradient, and no
activation is kept.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from torch import nn

from fedsdr.core.errors import UserError

ALL_BLOCKS: Final = "all"
UPPER_HALF: Final = "upper_half"


class BlockChoice(NamedTuple):
    """Which blocks of a model carry adapters.

    path: of the list of all blocks, such as "model.layers" or "transformer.h". numbers: of the
    chosen ones, in order; 0 is the block next to the embedding.
    """

    path: str
    numbers: tuple[int, ...]

    @property
    def pattern(self) -> str:
        """PEFT's `layers_pattern`: the last part of the list's path."""
        return self.path.rpartition(".")[2]

    def block_of(self, module: str) -> int | None:
        """The number of the block in which a module lies, by its path; None outside of them."""
        found = re.match(rf"{re.escape(self.path)}\.(\d+)\.", module)
        return int(found[1]) if found else None

    def includes(self, module: str) -> bool:
        """Whether a module lies in a chosen block."""
        return self.block_of(module) in self.numbers

    def selects(self, module: str) -> bool:
        """Whether PEFT would take a module for one of a chosen block."""
        found = re.match(rf"(?:^|.*?\.){re.escape(self.pattern)}\.(\d+)\.", module)
        return found is not None and int(found[1]) in self.numbers


def choose_blocks(
    model: nn.Module, layers: str | Sequence[int], adaptable: Collection[str]
) -> BlockChoice | None:
    """The blocks that `lora.layers` names; None for "all", where no block is distinguished.

    layers: "all", "upper_half" (of N blocks those from N // 2 on), or numbers. adaptable: paths of
    the layers that can carry adapters. Raises `UserError` for a number that is not there, and for a
    model whose blocks are not one list.
    """
    if layers == ALL_BLOCKS:
        return None
    path, count = _block_list(model, adaptable)
    numbers = tuple(range(count // 2, count)) if layers == UPPER_HALF else tuple(map(int, layers))
    if missing := [number for number in numbers if number not in range(count)]:
        raise UserError(
            f"lora.layers names layer {missing[0]}, and this model has {count}: choose from 0 to "
            f"{count - 1}, or set it to {ALL_BLOCKS!r}"
        )
    return BlockChoice(path, numbers)


def _block_list(model: nn.Module, adaptable: Collection[str]) -> tuple[str, int]:
    """Path and length of the only outermost list of modules that holds adaptable layers."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():  # an outer list comes before those in it
        inside = any(path.startswith(f"{outer}.") for outer in found)
        holds = any(each.startswith(f"{path}.") for each in adaptable)
        if isinstance(module, nn.ModuleList) and holds and not inside:
            found[path] = len(module)
    if len(found) != 1:
        lists = ", ".join(found) or "none"
        raise UserError(
            f"lora.layers needs a model whose layers are one list, and {type(model).__name__} has "
            f"{lists}: set it to {ALL_BLOCKS!r}"
        )
    return next(iter(found.items()))
