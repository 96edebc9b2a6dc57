"""The weights B A that adapters add to their layers: inner products, means, best approximations.

All without the factor alpha/r, and where possible without forming a weight: for thin factors,
<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)). Ranks may differ. Arithmetic is in float64.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    check_same_keys,
    layer_paths,
    resize_rank,
)

Weights = dict[str, Tensor]  # the path of a layer -> (out, in)


def product_dot(a: Adapter, b: Adapter) -> float:
    """sum over layers of <B_a A_a, B_b A_b>, in float64, without forming the products."""
    if layer_paths(a) != layer_paths(b):
        raise ValueError(
            f"adapters of different layers: {layer_paths(a)[:3]} and {layer_paths(b)[:3]}"
        )
    total = 0.0
    for path in layer_paths(a):
        a_in, b_in = a[path + A_SUFFIX].double(), b[path + A_SUFFIX].double()
        a_out, b_out = a[path + B_SUFFIX].double(), b[path + B_SUFFIX].double()
        total += float(torch.sum((a_out.T @ b_out) * (a_in @ b_in.T)))
    return total


def product_change(before: Adapter, after: Adapter) -> Adapter:
    """An adapter of rank 2r whose product is B' A' - B A: the change of the layer's weight."""
    check_same_keys(before, after)
    change: Adapter = {}
    for path in layer_paths(after):
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


def stack_components(parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """sum_k w_k B_k A_k as one adapter of rank sum_k r_k: [B_1 ... B_K] [w_1 A_1; ...; w_K A_K].

    FLoRA (arXiv 2409.05976), Sec. 4.
    """
    first, _ = parts[0]
    stacked: Adapter = {}
    for path in layer_paths(first):
        a, b = path + A_SUFFIX, path + B_SUFFIX
        stacked[a] = torch.cat([each[a].double() * weight for each, weight in parts])
        stacked[b] = torch.cat([each[b].double() for each, _ in parts], dim=1)
    return stacked


def product_weights(a: Adapter) -> Weights:
    """B A of each layer, formed."""
    return {p: a[p + B_SUFFIX].double() @ a[p + A_SUFFIX].double() for p in layer_paths(a)}


class ProductSum(NamedTuple):
    """sum_k w_k B_k A_k, exactly, and sum_k w_k: a fold.

    Kept as factors while they are smaller than the weights that they stand for, then as those:
    memory does not grow with the number of clients beyond that.
    """

    parts: tuple[tuple[Adapter, float], ...] = ()
    formed: Weights | None = None
    weight: float = 0.0

    def plus(self, a: Adapter, weight: float) -> "ProductSum":
        parts = (*self.parts, (a, weight))
        total = self.weight + weight
        if self.formed is None and _size_of_factors(parts) <= _size_of_weights(a):
            return ProductSum(parts, None, total)
        formed = {path: _layer_sum(self.formed, parts, path) for path in layer_paths(a)}
        return ProductSum((), formed, total)

    def factors(self) -> Adapter:
        """The sum as one adapter in float64: the stack of its parts, or of full rank."""
        return stack_components(self.parts) if self.formed is None else _unsplit(self.formed)

    def weights(self) -> Weights:
        """The sum, formed."""
        return product_weights(stack_components(self.parts)) if self.formed is None else self.formed


def _layer_sum(formed: Weights | None, parts: Sequence[tuple[Adapter, float]], path: str) -> Tensor:
    """One layer's formed weight plus w_k B_k A_k of all parts: (out, in)."""
    first = parts[0][0]
    shape = first[path + B_SUFFIX].shape[0], first[path + A_SUFFIX].shape[1]
    zeros = first[path + B_SUFFIX].new_zeros(shape, dtype=torch.float64)
    total = zeros if formed is None else formed[path].clone()
    for part, weight in parts:
        b_out, a_in = part[path + B_SUFFIX].double(), part[path + A_SUFFIX].double()
        total.addmm_(b_out, a_in, alpha=weight)
    return total


def _size_of_factors(parts: Sequence[tuple[Adapter, float]]) -> int:
    return sum(tensor.numel() for adapter, _ in parts for tensor in adapter.values())


def _size_of_weights(a: Adapter) -> int:
    return sum(a[p + B_SUFFIX].shape[0] * a[p + A_SUFFIX].shape[1] for p in layer_paths(a))


def _unsplit(formed: Weights) -> Adapter:
    """Weights as an adapter of full rank: W = W I."""
    whole: Adapter = {}
    for path, weight in formed.items():
        whole[path + A_SUFFIX] = torch.eye(weight.shape[1], dtype=weight.dtype)
        whole[path + B_SUFFIX] = weight
    return whole


def thin_svd(a_in: Tensor, b_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD U, s, V^T of b_out @ a_in, by QR of the factors where they are thin.

    a_in: (m, in), b_out: (out, m); s has min(m, in, out) entries, falling.
    """
    if len(a_in) >= a_in.shape[1]:  # else V stays within the rows of a_in, also where s is 0
        u, s, vt = torch.linalg.svd(b_out.double() @ a_in.double(), full_matrices=False)
        return u, s, vt
    q_out, core_out = torch.linalg.qr(b_out.double())
    q_in, core_in = torch.linalg.qr(a_in.double().T)
    u, s, vt = torch.linalg.svd(core_out @ core_in.T, full_matrices=False)
    return q_out @ u, s, vt @ q_in.T


def truncate_rank(a: Adapter, rank: int) -> Adapter:
    """The best approximation of B A by rank `rank` (Eckart-Young), in float64.

    The singular values go into B: B = U s, A = V^T, as in FlexLoRA (arXiv 2402.11505, Sec. 3).
    A layer of fewer components, narrower than `rank`, is filled up with zeros.
    """
    best: Adapter = {}
    for path in layer_paths(a):
        u, s, vt = thin_svd(a[path + A_SUFFIX], a[path + B_SUFFIX])
        best[path + A_SUFFIX] = vt[:rank]
        best[path + B_SUFFIX] = u[:, :rank] * s[:rank]
    return resize_rank(best, rank)


def compact_rank(a: Adapter) -> Adapter:
    """The same weights B A with as few components as are nonzero in float64, but at least one."""
    small: Adapter = {}
    for path in layer_paths(a):
        u, s, vt = thin_svd(a[path + A_SUFFIX], a[path + B_SUFFIX])
        cut = float(s[0]) * torch.finfo(s.dtype).eps * max(len(u), vt.shape[1])
        count = max(1, int((s > cut).sum()))
        small[path + A_SUFFIX] = vt[:count]
        small[path + B_SUFFIX] = u[:, :count] * s[:count]
    return small


def procrustes_rotation(cross: Tensor) -> Tensor:
    """The orthogonal Q that maximises <Q, cross>: U V^T (orthogonal Procrustes problem)."""
    u, _, vt = torch.linalg.svd(cross)
    turn: Tensor = u @ vt
    return turn


def rotate_factors(a: Adapter, turns: Weights) -> Adapter:
    """B Q, Q^T A for each layer's orthogonal Q (r, r): factors of the same weights."""
    turned: Adapter = {}
    for path, q in turns.items():
        for key, new in (
            (path + A_SUFFIX, q.T @ a[path + A_SUFFIX].double()),
            (path + B_SUFFIX, a[path + B_SUFFIX].double() @ q),
        ):
            turned[key] = new.to(a[key].dtype)
    return turned
