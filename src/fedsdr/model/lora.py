"""Two-stream LoRA: two low-rank streams in parallel on every adapted layer.

    h_out = W0 h + (alpha/r) B_R A_R h + (alpha/r) B_S A_S h      (arXiv 2605.18028, Sec. method)

R, rectification, is global: it learns from raw data and is what clients upload. S, smoothing,
is private: it learns from rewrites and stays with its client. Our own layer rather than PEFT's
because a stream that is off costs nothing and a frozen one no weight gradient; keys and shapes
are PEFT's, so that files are interchangeable (`fedsdr.model.peft_format`).

A third stream F is the part of R that exact aggregation has folded into the base model. It is never
trained, and used only by the algorithms that fold.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsdr.core import seeds
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, check_same_keys, stack_clients
from fedsdr.data.batches import Batch
from fedsdr.model.blocks import ALL_BLOCKS, choose_blocks
from fedsdr.model.dropout import Dropout, lora_dropout
from fedsdr.model.layers import adaptable_layers, layer_shape, select_layers
from fedsdr.model.low_rank import FactorPair, add_low_rank
from fedsdr.model.packing import Packing

PROBE: Final = (2, 3)  # examples and tokens of a trial


class Stream(StrEnum):
    """The two streams, and the folded part of R."""

    RECTIFY = "R"
    SMOOTH = "S"
    FOLDED = "F"


class TwoStreamLinear(nn.Module):
    """A frozen `nn.Linear`, quantised or not, or GPT-2 `Conv1D`, with two parallel LoRA streams.

    A: (r, in) and B: (out, r) for each stream, float32 or the base's dtype if that is wider.
    The rank r of a stream is that of the adapter in it; alpha / rank scales all of them.
    For K clients at once A is (K, r, in) and B (K, out, r), and the batch holds equally many rows
    of each, in order.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.active: tuple[Stream, ...] = ()
        self.dropout: Dropout | None = None  # of what the trained stream reads
        self.key = 0  # the layer's own, for its dropout
        weight = base.weight
        assert isinstance(weight, Tensor)
        outputs, inputs = layer_shape(base)
        dtype = torch.promote_types(weight.dtype, torch.float32)

        def zeros(rows: int, columns: int) -> nn.ParameterDict:
            zero = torch.zeros((rows, columns), dtype=dtype, device=weight.device)
            return nn.ParameterDict({s: nn.Parameter(zero.clone()) for s in Stream})

        self.A, self.B = zeros(rank, inputs), zeros(outputs, rank)

    @property
    def weight(self) -> Any:
        """The base layer's: some models read the weight of a layer without calling it."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    def resize(self, stream: Stream, rank: int) -> None:
        """Give a stream another rank; its values are lost."""
        a, b = self.A[stream], self.B[stream]
        if a.shape != (rank, a.shape[-1]):
            trained = a.requires_grad
            self.A[stream] = nn.Parameter(a.new_zeros(rank, a.shape[-1]), trained)
            self.B[stream] = nn.Parameter(b.new_zeros(b.shape[-2], rank), trained)

    def forward(self, h: Tensor) -> Tensor:  # (..., in) -> (..., out)
        out: Tensor = self.base(h)
        if not self.active:
            return out
        # Products in bfloat16 under float32 weights: a cast of h would cost more than the product.
        # Not so in float16, whose range is too small for gradients.
        wide = self.A[self.active[0]].dtype
        dtype = torch.bfloat16 if out.dtype == torch.bfloat16 else wide
        clients = self.A[self.active[0]].shape[:-2]  # (), or (K,): then K have as many rows each
        flat, base = (each.reshape(*clients, -1, each.shape[-1]).to(dtype) for each in (h, out))
        trained, *frozen = self._factors()
        if self.dropout is not None and any(factor.requires_grad for factor in trained):
            dropped = self.dropout(flat, self.key)
            base = add_low_rank(base, dropped, self.scaling, trained, [])
            if not frozen:
                return base.to(out.dtype).view(out.shape)
            trained, *frozen = frozen  # which gets no gradient
        whole = add_low_rank(base, flat, self.scaling, trained, frozen)
        return whole.to(out.dtype).view(out.shape)

    def _factors(self) -> list[FactorPair]:
        """Of the active streams, one that is trained first."""
        pairs = [(self.A[stream], self.B[stream]) for stream in self.active]
        return sorted(pairs, key=lambda pair: not (pair[0].requires_grad or pair[1].requires_grad))


@contextmanager
def streams_off(model: nn.Module) -> Iterator[None]:
    """The base model alone while the block runs, whatever streams are in its layers."""
    layers = [each for each in model.modules() if isinstance(each, TwoStreamLinear)]
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = ()
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def active_adapters(model: nn.Module) -> dict[str, Tensor]:
    """The factors by which a model differs from its base: of the streams that take part in the
    forward pass, but for those whose B is zero."""
    return {
        f"{path}.{stream}.{name}": factors[stream]
        for path, layer in model.named_modules()
        if isinstance(layer, TwoStreamLinear)
        for stream in layer.active
        if bool(layer.B[stream].any())
        for name, factors in (("A", layer.A), ("B", layer.B))
    }


class TwoStreamModel:
    """A causal language model whose linear layers carry the two streams.

    The base model is changed in place (its adapted layers are wrapped) and frozen; `detach`
    gives it back as it was. Both streams start off and hold zeros.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: str | Collection[str],
        rank: int,
        alpha: float,
        layers: str | Sequence[int] = ALL_BLOCKS,
    ) -> None:
        """Adapt the layers that `targets` selects: "all-linear" or the last parts of names.

        layers: of which blocks: "all", "upper_half" or numbers.
        """
        self.model: Any = model
        self.rank, self.alpha = rank, alpha
        model.requires_grad_(False)
        self.module_paths = [path for path, _ in model.named_modules() if path]
        self.blocks = choose_blocks(model, layers, adaptable_layers(model))
        self._layers: dict[str, TwoStreamLinear] = {}
        for path in select_layers(model, targets, layers):
            layer = TwoStreamLinear(model.get_submodule(path), rank, alpha)
            layer.key = seeds.derive_seed(0, "layer", path)
            model.set_submodule(path, layer)
            self._layers[path] = layer
        self.packing = Packing(model)
        self.activate()

    @property
    def paths(self) -> list[str]:
        """Paths of the adapted layers in the base model."""
        return list(self._layers)

    @property
    def transposed(self) -> bool:
        """Whether the base keeps its weights as (in, out), as GPT-2's Conv1D does."""
        return any(isinstance(layer.base, Conv1D) for layer in self._layers.values())

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def activate(self, *streams: Stream) -> None:
        """Choose the streams that take part in the forward pass: none is the base model."""
        for layer in self._layers.values():
            layer.active = tuple(stream for stream in Stream if stream in streams)

    @contextmanager
    def dropping(self, drop: Dropout | None) -> Iterator[None]:
        """With dropout of what the trained stream reads, while the block runs, backward pass
        included; None is without. Frozen streams read all, as the base model does."""
        for layer in self._layers.values():
            layer.dropout = drop
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.dropout = None

    @torch.no_grad()
    def check_dropout(self, share: float) -> None:
        """Raise `UserError` where an adapted layer reads other rows than a batch has tokens."""
        ids = torch.ones(PROBE, dtype=torch.long, device=self.device)
        drop = lora_dropout(share, Batch(ids, ids, ids), range(PROBE[0]))
        self.activate(Stream.RECTIFY)
        self.train_only(Stream.RECTIFY)
        try:
            with self.dropping(drop):
                self.model(input_ids=ids, use_cache=False)
        finally:
            self.train_only(None)
            self.activate()

    def train_only(self, stream: Stream | None, factors: str = "AB") -> dict[str, nn.Parameter]:
        """Make exactly one stream's factors (or nothing) trainable; returns them in key order."""
        for layer in self._layers.values():
            for each in Stream:
                layer.A[each].requires_grad_(each == stream and "A" in factors)
                layer.B[each].requires_grad_(each == stream and "B" in factors)
        tensors = {} if stream is None else self._tensors(stream)
        return {key: tensor for key, tensor in tensors.items() if tensor.requires_grad}

    def load(self, stream: Stream, adapter: Adapter) -> None:
        """Copy an adapter, of any rank in each layer; its keys must be exactly this model's."""
        ranks = {
            path: adapter[path + A_SUFFIX].shape[0] if path + A_SUFFIX in adapter else self.rank
            for path in self._layers
        }
        check_same_keys(self._blank(ranks), adapter)
        for path, layer in self._layers.items():
            layer.resize(stream, ranks[path])
        tensors = self._tensors(stream)
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(adapter[key])

    def load_side_by_side(self, stream: Stream, adapters: Sequence[Adapter]) -> None:
        """Copy an adapter of each of K clients; smaller ranks are padded with zeros.

        Padding stays zero in training: its gradient in either factor is a product with the other's.
        """
        whole = stack_clients(adapters)
        assert whole.keys() == self._tensors(stream).keys()
        for path, layer in self._layers.items():
            for factors, key in ((layer.A, path + A_SUFFIX), (layer.B, path + B_SUFFIX)):
                old = factors[stream]
                factors[stream] = nn.Parameter(whole[key].to(old.device, old.dtype), False)

    def blank(self) -> Adapter:
        """An adapter of this model's keys, shapes and dtypes, at the federation's rank: zeros."""
        empty = self._blank(dict.fromkeys(self._layers, self.rank))
        return {key: torch.zeros(t.shape, dtype=t.dtype) for key, t in empty.items()}

    def _blank(self, ranks: Mapping[str, int]) -> Adapter:
        """Keys, shapes and dtypes alone (tensors of no memory), at these ranks."""
        empty: Adapter = {}
        for path, layer in sorted(self._layers.items()):
            a, b, rank = layer.A[Stream.RECTIFY], layer.B[Stream.RECTIFY], ranks[path]
            empty[path + A_SUFFIX] = a.new_empty((rank, a.shape[-1]), device="meta")
            empty[path + B_SUFFIX] = b.new_empty((b.shape[-2], rank), device="meta")
        return empty

    def read(self, stream: Stream) -> Adapter:
        """A copy of a stream's tensors, on the CPU."""
        return {
            key: tensor.detach().to("cpu", copy=True)
            for key, tensor in self._tensors(stream).items()
        }

    def _tensors(self, stream: Stream) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for path, layer in sorted(self._layers.items()):
            named[path + A_SUFFIX] = layer.A[stream]
            named[path + B_SUFFIX] = layer.B[stream]
        return named

    def detach(self) -> nn.Module:
        """Take the streams off and return the untouched base model."""
        for path, layer in self._layers.items():
            self.model.set_submodule(path, layer.base)
        self._layers = {}
        model: nn.Module = self.model
        return model
