"""An ablation that gives privacy up: FedSDR whose S is aggregated too.

Both streams are trained as in FedSDR (`fedsdr.algorithms.two_stream`), but S is no client's own: it
is broadcast, its change is uploaded under the prefix `SHARED`, and the server takes the mean, as
FedAvg does. The deployed model, and every client's, is W0 + R + S. What S reveals of a client is
then sent like R, which is why arXiv 2605.18028 keeps S local. It is selected by
`federation.targets = "two_shared_streams"`; no method's name stands for it.
"""

from dataclasses import replace
from typing import Any

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
from fedsdr.algorithms.two_stream import Smoothing, stream_conflict
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    FOLDED,
    Adapter,
    Private,
    add,
    add_prefix,
    fresh_adapter,
    no_sum,
    select_tensors,
    strip_prefix,
    subtract,
)

SHARED = "smoothing/"


def two_shared_streams(inner: Algorithm, options: Smoothing) -> Algorithm:
    """`inner` on raw data with a second stream, trained on rewrites and averaged."""

    def init(first: Adapter) -> ServerState:
        # Another A than R's, or the streams would begin in one subspace; B is zero.
        state = inner.init(first)
        s = fresh_adapter(first, seeds.seeded_generator(0, "shared smoothing stream"))
        return replace(state, memory={**state.memory, SHARED: s})

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        shared, s = without_smoothing(sent), strip_prefix(sent, SHARED)
        smoothed = smooth_shared(inner.personal(shared, state), s, fit, options)
        done: list[Fitted] = []

        def rectify(stage: Stage) -> Fitted:
            s_frozen = Private(smoothed.shared)  # a stage takes S as a private adapter
            targets, alone = options.rectify_on, options.alone
            done.append(fit(replace(stage, private=s_frozen, targets=targets, alone=alone)))
            return done[-1]

        update, state = inner.client(shared, state, rectify, round)
        moved = add_prefix(subtract(smoothed.shared, s), SHARED)
        conflicts = stream_conflict(done[-1], smoothed)
        metrics = {**update.metrics, "loss/smooth": smoothed.loss, **conflicts}
        return replace(update, change={**update.change, **moved}, metrics=metrics), state

    def fold(folds: Any, update: Update) -> Any:
        ours, theirs = folds
        s = ours.plus(strip_prefix(update.change, SHARED), update.weight)
        return s, inner.add(theirs, replace(update, change=without_smoothing(update.change)))

    def finish(state: ServerState, folds: Any, round: Round) -> ServerState:
        ours, theirs = folds
        s = state.memory[SHARED]
        after = inner.finish(state, theirs, round)
        return replace(after, memory={**after.memory, SHARED: add(s, ours.mean(like=s))})

    def with_s(state: ServerState, adapter: Adapter, prefix: str) -> Adapter:
        return {**adapter, **add_prefix(state.memory[SHARED], prefix)}

    def personal(sent: Adapter, state: ClientState) -> Personal:
        mine = inner.personal(without_smoothing(sent), state)
        both = {**(mine.shared or {}), **add_prefix(strip_prefix(sent, SHARED), FOLDED)}
        return mine._replace(shared=both)

    return inner._replace(
        init=init,
        broadcast=lambda state: with_s(state, inner.broadcast(state), SHARED),
        deployed=lambda state: with_s(state, inner.deployed(state), FOLDED),
        client=client,
        start=lambda state, round: (no_sum(state.memory[SHARED]), inner.start(state, round)),
        add=fold,
        finish=finish,
        uploads=lambda state, round: with_s(state, inner.uploads(state, round), SHARED),
        personal=personal,
    )


def smooth_shared(r: Personal, s: Adapter, fit: Fit, options: Smoothing) -> Fitted:
    """Stage 1: S is trained like any shared adapter, with R frozen or off."""
    r_frozen = add_prefix(r.shared or {}, FOLDED) if options.context == "joint" else {}
    return fit(
        Stage(
            "smooth",
            trains="R",
            schedule=options.schedule,
            shared={**s, **r_frozen},
            targets=options.smooth_on,
            loss=options.smooth_loss,
        )
    )


def without_smoothing(sent: Adapter) -> Adapter:
    """The tensors that are sent, except S."""
    return select_tensors(sent, lambda key: not key.startswith(SHARED))
