"""Whether numbers of a tensor occur in bytes: what looks for leaks."""

from collections.abc import Iterable

from torch import Tensor

from fedsdr.core.adapters import Adapter

WINDOW = 16  # bytes: four float32 numbers


def windows(adapters: Iterable[Adapter]) -> set[bytes]:
    """Every four neighbouring numbers of every tensor, by rows and by columns, as bytes."""
    found: set[bytes] = set()
    for adapter in adapters:
        for tensor in adapter.values():
            for flat in (tensor.flatten(), tensor.T.contiguous().flatten()):
                for four in flat.unfold(0, 4, 1):
                    if bool((four != 0).all()):
                        found.add(four.numpy().tobytes())
    return found


def occurs(data: bytes, wanted: set[bytes]) -> bool:
    """Whether any of the windows stands in `data`, at any offset."""
    return any(data[i : i + WINDOW] in wanted for i in range(len(data) - WINDOW + 1))


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
