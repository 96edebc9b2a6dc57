"""The frozen part of the global model that FLoRA and FedEx-LoRA fold into the base.

They merge it into the base weights; we keep it as an adapter of its own, of the smallest rank
that holds it, so that one base model serves all clients and the result is still an adapter. It is
sent to clients each round, under the prefix `FOLDED`: exactness is paid for in download.
"""

from dataclasses import replace

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Round,
    ServerState,
    Stage,
    Update,
)
from fedsdr.core.adapters import FOLDED, Adapter, add_prefix, select_tensors, strip_prefix
from fedsdr.core.products import compact_rank, stack_components


def with_folded_part(inner: Algorithm) -> Algorithm:
    """`inner` on top of the frozen part in `ServerState.memory[FOLDED]`, once there is one.

    The server half of the wrapping algorithm puts it there.
    """

    def with_folded(state: ServerState, sent: Adapter) -> Adapter:
        return {**sent, **add_prefix(state.memory.get(FOLDED, {}), FOLDED)}

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        frozen = select_tensors(sent, is_folded)

        def fit_with_frozen(stage: Stage) -> Fitted:
            return fit(replace(stage, shared={**(stage.shared or {}), **frozen}))

        return inner.client(trained_part(sent), state, fit_with_frozen, round)

    def personal(sent: Adapter, state: ClientState) -> Personal:
        mine = inner.personal(trained_part(sent), state)
        return mine._replace(shared={**(mine.shared or {}), **select_tensors(sent, is_folded)})

    return inner._replace(
        broadcast=lambda state: with_folded(state, inner.broadcast(state)),
        deployed=lambda state: with_folded(state, inner.deployed(state)),
        client=client,
        personal=personal,
        later=inner.later | {FOLDED},
    )


def is_folded(key: str) -> bool:
    """Whether a tensor belongs to the folded part."""
    return key.startswith(FOLDED)


def trained_part(sent: Adapter) -> Adapter:
    """The tensors that are not folded."""
    return select_tensors(sent, lambda key: not is_folded(key))


def fold_in(state: ServerState, parts: list[tuple[Adapter, float]]) -> Adapter:
    """The frozen part with sum_i w_i B_i A_i added to it, exactly."""
    before = state.memory.get(FOLDED)
    total = compact_rank(stack_components([*([(before, 1.0)] if before else []), *parts]))
    return {key: tensor.to(state.adapter[key].dtype) for key, tensor in total.items()}


def merge_folded(deployed: Adapter) -> Adapter:
    """R with its folded part as one plain adapter, for files and other tools."""
    folded = strip_prefix(deployed, FOLDED)
    plain = trained_part(deployed)
    if not folded:
        return plain
    total = compact_rank(stack_components([(plain, 1.0), (folded, 1.0)]))
    return {key: tensor.to(plain[key].dtype) for key, tensor in total.items()}
