"""Adapter state: a dict of tensors, its algebra, and the wrapper that keeps one private.

An adapter maps PEFT's names to PEFT's shapes: for a layer at `path` with `in` inputs and `out`
outputs, `path.lora_A.weight` is (r, in) and `path.lora_B.weight` is (out, r). All operations
are pure and insist on equal keys and shapes, so that a misnamed tensor is an error and never
a silent no-op. Operations on the products B A are in `products`.

Further tensors that are sent with an adapter have the same names under a prefix that ends with a
slash: `control/path.lora_A.weight`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

Adapter = dict[str, Tensor]

A_SUFFIX: Final = ".lora_A.weight"
B_SUFFIX: Final = ".lora_B.weight"
FOLDED: Final = "folded/"  # prefix of the frozen part of R that exact aggregation folds away


class Private:
    """An adapter that stays with its client: LoRA-S, or a personal adapter.

    It is not a dict of tensors, so neither the type checker nor `Update` accepts it, and it
    cannot be pickled or copied into a message. The local trainer and the client's own store
    unwrap it (`unwrap_private`); nothing else may. Algorithms can only read single numbers of it.
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


def unwrap_private(private: Private | None) -> Adapter:
    """The tensors of a private adapter, for the client's own trainer and store only."""
    return {} if private is None else dict(private._adapter)


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
    """a + b, tensor by tensor."""
    check_same_keys(a, b)
    return {key: a[key] + b[key] for key in a}


def subtract(a: Adapter, b: Adapter) -> Adapter:
    """a - b, tensor by tensor."""
    check_same_keys(a, b)
    return {key: a[key] - b[key] for key in a}


def scale(a: Adapter, factor: float) -> Adapter:
    """factor a, tensor by tensor."""
    return {key: tensor * factor for key, tensor in a.items()}


def scale_product(a: Adapter, factor: float) -> Adapter:
    """The adapter whose weights B A are `factor` times as large: B shrinks, A stays."""
    return {key: tensor * factor if factor_of(key) == "B" else tensor for key, tensor in a.items()}


def zeros_like(a: Adapter, dtype: torch.dtype | None = None) -> Adapter:
    """Zeros of the same shapes, in the same dtypes or in `dtype`."""
    return {key: torch.zeros_like(tensor, dtype=dtype) for key, tensor in a.items()}


class WeightedSum(NamedTuple):
    """sum_k w_k a_k in float64, and sum_k w_k: a fold whose memory does not grow with K."""

    total: Adapter
    weight: float = 0.0

    def plus(self, a: Adapter, weight: float) -> "WeightedSum":
        check_same_keys(self.total, a)
        # One pass over memory: the sum of a float64 and a scaled float32 tensor is fused.
        total = {key: torch.add(self.total[key], a[key], alpha=weight) for key in self.total}
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
    """Inner product of all entries, in float64; bit-identical for every order of the keys, which
    serialisation may change."""
    check_same_keys(a, b)
    return float(sum(torch.sum(a[key].double() * b[key].double()) for key in sorted(a)))


def norm(a: Adapter) -> float:
    """Euclidean norm of all entries."""
    return math.sqrt(dot(a, a))


def cosine(a: Adapter, b: Adapter) -> float:
    """Cosine of the angle between two adapters; 0 where one of them is zero."""
    length = norm(a) * norm(b)
    return dot(a, b) / length if length else 0.0


def size_in_bytes(a: Adapter) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in a.values())


def all_finite(a: Adapter) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in a.values())


def layer_paths(a: Adapter) -> list[str]:
    """The paths of the adapted layers, sorted."""
    return sorted(key.removesuffix(A_SUFFIX) for key in a if key.endswith(A_SUFFIX))


def factor_of(key: str) -> Literal["A", "B"]:
    """Which of the two factors a tensor is (or, with a prefix, belongs to)."""
    if key.endswith(A_SUFFIX):
        return "A"
    if key.endswith(B_SUFFIX):
        return "B"
    raise ValueError(f"{key!r} is not the name of a LoRA factor")


def rank_of(a: Adapter) -> int:
    """The largest rank of its factors; 0 for an adapter without any."""
    return max(
        (t.shape[0 if factor_of(key) == "A" else 1] for key, t in plain_factors(a).items()),
        default=0,
    )


def resize_rank(a: Adapter, rank: int) -> Adapter:
    """The first `rank` components of each layer, zeros where there are fewer."""

    def resize(key: str, tensor: Tensor) -> Tensor:
        out, inputs = tensor.shape
        wanted = (rank, inputs) if factor_of(key) == "A" else (out, rank)
        fitted = tensor.new_zeros(wanted)
        part = tuple(slice(min(has, asks)) for has, asks in zip(tensor.shape, wanted, strict=True))
        fitted[part] = tensor[part]
        return fitted

    return {key: resize(key, tensor) for key, tensor in a.items()}


def stack_clients(adapters: Sequence[Adapter]) -> Adapter:
    """K adapters as one with tensors (K, ...); smaller ranks are padded with zeros."""
    return {key: _filled([each[key] for each in adapters]) for key in adapters[0]}


def _filled(tensors: Sequence[Tensor]) -> Tensor:
    rows, columns = (max(tensor.shape[i] for tensor in tensors) for i in (0, 1))
    whole: Tensor = tensors[0].new_zeros(len(tensors), rows, columns)
    for place, tensor in zip(whole, tensors, strict=True):
        place[: tensor.shape[0], : tensor.shape[1]] = tensor
    return whole


def unstack_clients(whole: Adapter, like: Sequence[Adapter]) -> list[Adapter]:
    """The inverse of `stack_clients`: K adapters, each cut to the shapes of its `like`."""
    return [
        {key: whole[key][k, : t.shape[0], : t.shape[1]].clone() for key, t in each.items()}
        for k, each in enumerate(like)
    ]


def select_tensors(a: Adapter, wanted: Callable[[str], bool]) -> Adapter:
    """The tensors whose names are wanted."""
    return {key: tensor for key, tensor in a.items() if wanted(key)}


def add_prefix(a: Adapter, prefix: str) -> Adapter:
    """The same tensors under names that begin with `prefix`, to be sent with an adapter."""
    return {prefix + key: tensor for key, tensor in a.items()}


def strip_prefix(a: Adapter, prefix: str) -> Adapter:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {key.removeprefix(prefix): a[key] for key in a if key.startswith(prefix)}


def plain_factors(a: Adapter) -> Adapter:
    """The plain LoRA factors among tensors that are sent together: names without a prefix."""
    return select_tensors(a, lambda key: "/" not in key)


def fresh_adapter(like: Adapter, generator: torch.Generator) -> Adapter:
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
