"""Adapter state: a dict of tensors, its algebra, and the wrapper that keeps one private.

An adapter maps PEFT's names to PEFT's shapes: for a layer at `path` with `in` inputs and `out`
outputs, `path.lora_A.weight` is (r, in) and `path.lora_B.weight` is (out, r). All operations
are pure and insist on equal keys and shapes, so that a misnamed tensor is an error and never
a silent no-op.
"""

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, NoReturn

import torch
from torch import Tensor

Adapter = dict[str, Tensor]

A_SUFFIX: Final = ".lora_A.weight"
B_SUFFIX: Final = ".lora_B.weight"


class Private:
    """An adapter that stays with its client: LoRA-S, or a personal adapter.

    It is not a dict of tensors, so neither the type checker nor `Update` accepts it, and it
    cannot be pickled or copied into a message. The local trainer and the client's own store
    unwrap it (`unwrap`); nothing else may. What algorithms can learn of it are single numbers.
    """

    __slots__ = ("_adapter",)

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = dict(adapter)

    def number(self, measure: Callable[[Adapter], float]) -> float:
        """`measure` of the tensors, which must be one float: a norm, say, for the log."""
        value = measure(dict(self._adapter))
        if type(value) is not float:
            raise TypeError(f"only a float may leave a private adapter, not {type(value)}")
        return value

    def __repr__(self) -> str:
        return f"Private({len(self._adapter)} tensors)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private adapter never leaves its client: it cannot be serialised")


def unwrap(private: Private) -> Adapter:
    """The tensors of a private adapter, for the client's own trainer and store only."""
    return dict(private._adapter)


def check_same_keys(expected: Adapter, given: Adapter, who: str = "adapter") -> None:
    """Raise `ValueError` naming missing and unexpected keys, or the first unequal shape."""
    if expected.keys() != given.keys():
        missing = sorted(expected.keys() - given.keys())
        extra = sorted(given.keys() - expected.keys())
        raise ValueError(f"{who}: missing keys {missing[:3]}, unexpected keys {extra[:3]}")
    for key, tensor in expected.items():
        if tensor.shape != given[key].shape:
            raise ValueError(
                f"{who}: {key} has shape {tuple(given[key].shape)}, expected {tuple(tensor.shape)}"
            )


def add(a: Adapter, b: Adapter) -> Adapter:
    check_same_keys(a, b)
    return {key: a[key] + b[key] for key in a}


def subtract(a: Adapter, b: Adapter) -> Adapter:
    check_same_keys(a, b)
    return {key: a[key] - b[key] for key in a}


def scale(a: Adapter, factor: float) -> Adapter:
    return {key: tensor * factor for key, tensor in a.items()}


def zeros_like(a: Adapter, dtype: torch.dtype | None = None) -> Adapter:
    return {key: torch.zeros_like(tensor, dtype=dtype) for key, tensor in a.items()}


class WeightedSum(NamedTuple):
    """sum_k w_k a_k in float64, and sum_k w_k: a fold that is constant in the number of clients."""

    total: Adapter
    weight: float = 0.0

    def plus(self, a: Adapter, weight: float) -> "WeightedSum":
        check_same_keys(self.total, a)
        total = {key: self.total[key] + a[key].double() * weight for key in self.total}
        return WeightedSum(total, self.weight + weight)

    def mean(self, like: Adapter) -> Adapter:
        """sum_k w_k a_k / sum_k w_k, in the dtypes of `like`."""
        if not self.weight > 0:
            raise ValueError(f"the weights of a mean must add up to more than 0, not {self.weight}")
        return {key: (self.total[key] / self.weight).to(like[key].dtype) for key in self.total}


def no_sum(like: Adapter) -> WeightedSum:
    """The empty fold over adapters of these shapes."""
    return WeightedSum(zeros_like(like, torch.float64))


def weighted_mean(pairs: Iterable[tuple[Adapter, float]]) -> Adapter:
    """sum_k w_k a_k / sum_k w_k, in the dtypes of the first adapter."""
    like: Adapter = {}
    fold = no_sum(like)
    for adapter, weight in pairs:
        if not like:
            like, fold = adapter, no_sum(adapter)
        fold = fold.plus(adapter, weight)
    return fold.mean(like)


def dot(a: Adapter, b: Adapter) -> float:
    """Inner product of all entries, in float64."""
    check_same_keys(a, b)
    return float(sum(torch.sum(a[key].double() * b[key].double()) for key in a))


def norm(a: Adapter) -> float:
    """Euclidean norm of all entries."""
    return math.sqrt(dot(a, a))


def cosine(a: Adapter, b: Adapter) -> float:
    """Cosine of the angle between two adapters; 0 where one of them is zero."""
    length = norm(a) * norm(b)
    return dot(a, b) / length if length else 0.0


def size_in_bytes(a: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in a.values())


def all_finite(a: Adapter) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in a.values())


def layers(a: Adapter) -> list[str]:
    """The paths of the adapted layers, sorted."""
    return sorted(key.removesuffix(A_SUFFIX) for key in a if key.endswith(A_SUFFIX))


def fresh(like: Adapter, generator: torch.Generator) -> Adapter:
    """A new adapter of the same shapes as LoRA starts it: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0.

    This is PEFT's default, Kaiming-uniform with a = sqrt(5) (Hu et al. 2021, Sec. 4.1).
    """

    def start(key: str, tensor: Tensor) -> Tensor:
        if key.endswith(B_SUFFIX):
            return torch.zeros_like(tensor)
        bound = 1 / math.sqrt(tensor.shape[1])
        uniform = torch.rand(tensor.shape, generator=generator) * 2 - 1
        return (uniform * bound).to(tensor.dtype)

    return {key: start(key, like[key]) for key in sorted(like)}


# --- The weight that an adapter adds, B A, and its change ------------------------------------
# Never formed: for thin factors, <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)).


def product_dot(a: Adapter, b: Adapter) -> float:
    """sum over layers of <B_a A_a, B_b A_b>, in float64, without forming the products."""
    if layers(a) != layers(b):
        raise ValueError(f"adapters of different layers: {layers(a)[:3]} and {layers(b)[:3]}")
    total = 0.0
    for path in layers(a):
        a_in, b_in = a[path + A_SUFFIX].double(), b[path + A_SUFFIX].double()
        a_out, b_out = a[path + B_SUFFIX].double(), b[path + B_SUFFIX].double()
        total += float(torch.sum((a_out.T @ b_out) * (a_in @ b_in.T)))
    return total


def product_change(before: Adapter, after: Adapter) -> Adapter:
    """An adapter of rank 2r whose product is B' A' - B A: the change of the layer's weight."""
    check_same_keys(before, after)
    change: Adapter = {}
    for path in layers(after):
        a, b = path + A_SUFFIX, path + B_SUFFIX
        change[a] = torch.cat([after[a], before[a]], dim=0)  # (2r, in)
        change[b] = torch.cat([after[b], -before[b]], dim=1)  # (out, 2r)
    return change


def product_norm(a: Adapter) -> float:
    """Frobenius norm of the weights B A over all layers (without the factor alpha/r)."""
    return math.sqrt(max(product_dot(a, a), 0.0))


def product_cosine(a: Adapter, b: Adapter) -> float:
    """Cosine between two weight changes B A; 0 where one of them is zero."""
    length = product_norm(a) * product_norm(b)
    return product_dot(a, b) / length if length else 0.0
