"""FedDPA: which stage sees what, and the local adapter written out."""

import pytest

from fedsdr.algorithms.aggregation import partly_shared as partly
from fedsdr.algorithms.contract import (
    Stage,
)
from fedsdr.algorithms.personalisation import feddpa as duals
from fedsdr.algorithms.two_stream import SMOOTHING
from fedsdr.core.adapters import (
    FOLDED,
    add,
    norm,
    scale,
    select_tensors,
    subtract,
    unwrap_private,
    zeros_like,
)
from support.personal_turns import LEARNT, TWO_STREAM, by_client, every_target, stage_names, turns
from support.toy_clients import random_adapter
from support.toy_rounds import SCHEDULE, build, furthest, same_bits


@every_target
@pytest.mark.parametrize("inner", ["fedavg", "scaffold", "fedex", "fedsa"])
def test_which_stage_of_feddpa_sees_what(inner, targets):
    """R is trained without P; P beside the R that was received, frozen, and goes on."""
    for mine in by_client(turns(build(f"{targets}{inner}+feddpa"), late="ben")):
        p = own = None
        for turn in mine:
            assert [*turn.stages] == stage_names(targets, "personal")
            s = turn.state.private.get(SMOOTHING)
            rectify, stage = turn.stages["rectify"], turn.stages["personal"]
            assert rectify.private is s
            received = select_tensors(turn.sent, lambda key: not key.startswith("control/"))
            assert stage.shared is not None
            assert same_bits(stage.shared, received)
            assert stage.shared.keys() == received.keys()
            assert stage.own is own  # as it was before this round, like the received part
            assert stage.private is (s if p is None else p)
            assert stage == Stage(
                "personal", "S", SCHEDULE, stage.shared, own, stage.private,
                targets=LEARNT[targets],
            )  # fmt: skip
            p = turn.state.private[duals.FEDDPA_ADAPTER]
            assert p is turn.fits["personal"].after
            assert p is not s
            own = turn.state.private.get(partly.OWN_PART)
    if inner == "fedex":
        assert any(key.startswith(FOLDED) for key in stage.shared)


@every_target
def test_feddpas_local_adapter_written_out(targets):
    """Gradient descent on R + P - goal, R as received; from nothing, or from the first S."""
    for mine in by_client(turns(build(targets + "feddpa"))):
        goal = random_adapter("goal", mine[0].client, LEARNT[targets])
        s = mine[0].state.private.get(SMOOTHING)
        p = unwrap_private(s) if s else zeros_like(goal)
        assert (norm(p) > 0.1) == (targets == TWO_STREAM)
        for turn in mine:
            for _ in range(SCHEDULE.steps):
                miss = subtract(add(turn.sent, p), goal)
                p = subtract(p, scale(miss, SCHEDULE.lr))
            assert furthest(unwrap_private(turn.state.private[duals.FEDDPA_ADAPTER]), p) < 1e-12
