"""FedSDR's two streams: what is asked of the trainer, what is kept, and the conflict measured."""

from typing import Any

import pytest
import torch

from fedsdr.algorithms.aggregation.partly_shared import OWN_PART
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Loss,
    Round,
    Schedule,
    Stage,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.two_stream import SMOOTHING, Smoothing, stream_conflict, two_stream
from fedsdr.core.adapters import (
    FOLDED,
    Adapter,
    Private,
    plain_factors,
    strip_prefix,
    unwrap_private,
)
from fedsdr.core.metrics import Mean
from support.toy_clients import CLIENTS, ToyClient, random_adapter
from support.toy_rounds import LOCAL, SETUP, build, dense, furthest, play, same_bits


def streams(**options: Any) -> Algorithm:
    chosen = {"schedule": Schedule(2, 0.3), "state": "keep", "context": "base", "alone": 0.5}
    return two_stream(fedavg(SETUP), Smoothing(**{**chosen, **options}))


@pytest.mark.parametrize("context", ["joint", "base"])
@pytest.mark.parametrize("keep", ["keep", "reset"])
@pytest.mark.parametrize("alone", [0.0, 0.25, 1.0])
def test_two_stream_asks_for_exactly_these_stages(context, keep, alone):
    algorithm = streams(context=context, state=keep, alone=alone)
    state = ClientState({"other": Private({})})
    before: Private | None = None
    for round in range(3):
        toy = ToyClient("ben")
        shared = random_adapter("shared", round)
        _, state = algorithm.client(shared, state, toy, Round(round + 1, 0))
        smooth, rectify = toy.stages
        s = state.private[SMOOTHING]

        assert (smooth.name, smooth.trains, smooth.targets) == ("smooth", "S", "distilled")
        assert smooth.schedule == Schedule(2, 0.3)
        assert smooth.shared is (shared if context == "joint" else None)
        assert smooth.private is (before if keep == "keep" else None)
        assert smooth.alone == 0

        assert (rectify.name, rectify.trains, rectify.targets) == ("rectify", "R", "raw")
        assert rectify.schedule == Schedule(3, 0.1)
        assert rectify.shared is shared
        assert rectify.private is s
        assert rectify.alone == alone
        assert {*state.private} == {"other", SMOOTHING}
        before = s


@pytest.mark.parametrize("context", ["joint", "base"])
@pytest.mark.parametrize("keep", ["keep", "reset"])
def test_a_stream_that_takes_no_steps_changes_nothing(context, keep):
    """S starts at zero: unless it learns, FedSDR is FedAvg on raw data, bit for bit."""
    quiet = play(streams(schedule=Schedule(0, 0.3), context=context, state=keep))
    assert same_bits(quiet.server, play(fedavg(SETUP)).server)
    loud = play(streams(context=context, state=keep))
    assert furthest(quiet.server.adapter, loud.server.adapter) > 0.01


def test_always_alone_is_fedavg_on_raw_data():
    assert same_bits(play(streams(alone=1.0)).server, play(fedavg(SETUP)).server)


@pytest.mark.parametrize("context", ["joint", "base"])
def test_kept_streams_go_on_and_reset_ones_start_anew(context):
    kept, reset = (play(streams(context=context, state=it)) for it in ("keep", "reset"))
    once = play(streams(context=context, state="reset"), rounds=1)
    for client in CLIENTS:
        a, b, c = (
            unwrap_private(it.clients[client].private[SMOOTHING]) for it in (kept, reset, once)
        )
        assert furthest(a, b) > 0.01
        if context == "base":  # then each round asks the same of it
            assert furthest(b, c) == 0


# Departures from the method


def stages_of(algorithm: Algorithm, state: ClientState, number: int = 1) -> tuple[ToyClient, Any]:
    toy = ToyClient("ben")
    _, after = algorithm.client(random_adapter("shared"), state, toy, Round(number, 0))
    return toy, after


def test_a_decaying_stream_is_faded_where_its_training_begins():
    algorithm = streams(state="decay", decay=0.25)
    toy, state = stages_of(algorithm, ClientState())
    again, _ = stages_of(algorithm, state, 2)
    assert [stage.fade for stage in (*toy.stages, *again.stages)] == [0.25, 1.0, 0.25, 1.0]
    assert toy.stages[0].private is None
    assert again.stages[0].private is state.private[SMOOTHING]  # the trainer fades it, once
    left, begun = state.private[SMOOTHING], again.fits[0].before
    for path, weight in dense(unwrap_private(begun)).items():
        torch.testing.assert_close(weight, 0.25 * dense(unwrap_private(left))[path])


@pytest.mark.parametrize("order", ["smooth_first", "rectify_first"])
def test_a_decay_of_one_keeps_s(order):
    decayed = play(streams(state="decay", decay=1.0, order=order))
    assert same_bits(decayed[:3], play(streams(state="keep", order=order))[:3])
    assert not same_bits(decayed.clients, play(streams(state="decay", order=order)).clients)


def test_a_decay_of_nought_begins_with_a_weight_of_nought():
    played = play(streams(state="decay", decay=0.0))
    begun = [f for s, f in zip(played.stages, played.fits, strict=True) if s.trains == "S"]
    assert all(not w.any() for f in begun for w in dense(unwrap_private(f.before)).values())


@pytest.mark.parametrize("state", ["keep", "reset", "decay"])
def test_rectifying_first_goes_beside_the_last_rounds_stream(state):
    algorithm = streams(order="rectify_first", state=state)
    kept, before = ClientState(), None
    for number in (1, 2, 3):
        toy, kept = stages_of(algorithm, kept, number)
        rectify, smooth = toy.stages
        assert (rectify.trains, smooth.trains) == ("R", "S")
        assert rectify.private is before
        assert smooth.private is (None if state == "reset" else before)
        before = kept.private[SMOOTHING]
        assert before is toy.fits[1].after


ANY_R = ("fedavg", "local", "ffa", "rolora", "fedsa", "fedper", "flexlora", "flora", "fedex")


@pytest.mark.parametrize("name", [*ANY_R, "scaffold+ditto", "feddpa", "fedadam+median+int8"])
@pytest.mark.parametrize("context", ["joint", "base"])
def test_smoothing_last_is_on_top_of_the_r_just_trained(name, context):
    """Whatever of R is shared, folded or the client's own."""
    local = LOCAL.model_copy(update={"stage_order": "rectify_first", "smoothing_context": context})
    played = play(build(f"fedsdr+{name}", local=local))
    asked = [
        (s, f) for s, f in zip(played.stages, played.fits, strict=True) if s.name != "personal"
    ]
    assert len(asked) == 2 * 3 * len(CLIENTS)
    for (rectify, rectified), (smooth, _) in zip(asked[::2], asked[1::2], strict=True):
        assert (rectify.trains, smooth.trains) == ("R", "S")
        if context == "base":
            assert (smooth.shared, smooth.own) == (None, None)
            continue
        r = {**plain_factors(smooth.shared or {}), **unwrap_private(smooth.own)}
        assert same_bits(r, unwrap_private(rectified.after))
        folded = [strip_prefix(stage.shared or {}, FOLDED) for stage in (rectify, smooth)]
        assert same_bits(*folded)


def test_the_streams_can_learn_from_each_others_data():
    toy, _ = stages_of(streams(smooth_on="raw", rectify_on="distilled"), ClientState())
    assert [stage.targets for stage in toy.stages] == ["raw", "distilled"]
    swapped = LOCAL.model_copy(update={"smoothing_targets": "raw", "rectify_targets": "distilled"})
    played = play(build("fedsdr+ditto", local=swapped))
    assert {(stage.name, stage.targets) for stage in played.stages} == {
        ("smooth", "raw"), ("rectify", "distilled"), ("personal", "distilled"),
    }  # fmt: skip


@pytest.mark.parametrize("name", [*ANY_R, "scaffold+ditto", "fedprox", "feddpa"])
def test_consolidation_goes_on_from_the_rectified_r_and_is_what_is_sent(name):
    """Beside the same S, with the same corrections; what of R is whose does not change."""
    local = LOCAL.model_copy(update={"consolidate_steps": 4, "consolidate_lr": 0.05})
    played = play(build(f"fedsdr+{name}", local=local))
    asked = [
        (s, f) for s, f in zip(played.stages, played.fits, strict=True) if s.name != "personal"
    ]
    assert len(asked) == 3 * 3 * len(CLIENTS)
    for (rectify, rectified), (stage, fitted) in zip(asked[1::3], asked[2::3], strict=True):
        assert (stage.name, stage.trains, stage.alone) == ("consolidate", "R", 0)
        assert stage.loss == Loss("consolidation")
        assert stage.schedule == Schedule(4, 0.05)
        assert stage.private is rectify.private
        assert (stage.pull, stage.shift, stage.factors) == (
            rectify.pull, rectify.shift, rectify.factors,
        )  # fmt: skip
        assert same_bits(fitted.before, rectified.after)
    assert not same_bits(played.server, play(build(f"fedsdr+{name}")).server) or name == "local"
    if name == "fedavg":
        change = played.updates[0].change
        sent = {key: asked[2][1].shared[key] - asked[1][0].shared[key] for key in change}
        assert furthest(change, sent) == 0
    assert all("loss/consolidate" in update.metrics for update in played.updates)


@pytest.mark.parametrize("name", ["fedper", "fedsa"])
def test_a_client_keeps_its_own_part_of_r_as_consolidation_leaves_it(name):
    local = LOCAL.model_copy(update={"consolidate_steps": 4, "consolidate_lr": 0.05})
    played = play(build(f"fedsdr+{name}", local=local))
    consolidated = [
        (rectified.own, fitted.own)
        for stage, rectified, fitted in zip(
            played.stages[1:], played.fits, played.fits[1:], strict=False
        )
        if stage.name == "consolidate"
    ]
    last_round = consolidated[-len(CLIENTS) :]
    for client, (before, after) in zip(CLIENTS, last_round, strict=True):
        kept = unwrap_private(played.clients[client].private[OWN_PART])
        assert same_bits(kept, unwrap_private(after))
        assert not same_bits(kept, unwrap_private(before))


def test_without_an_s_there_is_no_teacher():
    """R first, in the first round."""
    some = {"order": "rectify_first", "consolidation": Schedule(2, 0.1)}
    toy, state = stages_of(streams(**some), ClientState())
    assert [stage.name for stage in toy.stages] == ["rectify", "smooth"]
    again, _ = stages_of(streams(**some), state, 2)
    assert [stage.name for stage in again.stages] == ["rectify", "consolidate", "smooth"]


def test_a_personal_model_is_the_global_one_with_the_kept_stream():
    algorithm = streams()
    played = play(algorithm)
    shared = random_adapter("another")
    personal = algorithm.personal(shared, played.clients["cleo"])
    assert personal.shared is shared
    assert personal.private is played.clients["cleo"].private[SMOOTHING]
    assert algorithm.personal(shared, ClientState()) == (shared, None, None)


def flat(*changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """after - before, or the weights themselves, as one vector."""
    after, *before = changes
    moved = {path: after[path] - before[0][path] if before else after[path] for path in after}
    return torch.cat([moved[path].flatten() for path in sorted(moved)])


def fitted(before: Adapter, after: Adapter) -> Fitted:
    return Fitted(1, Mean(0.0, 1.0), Private(before), Private(after))


def test_conflict_is_that_of_the_products_formed_explicitly():
    r, r_after = random_adapter("R"), random_adapter("R'")
    s, s_after = random_adapter("S"), random_adapter("S'")
    dr, ds = flat(dense(r_after), dense(r)), flat(dense(s_after), dense(s))
    expected = {
        "conflict/cosine": float(dr @ ds / dr.norm() / ds.norm()),
        "norm/R": float(flat(dense(r_after)).norm()),
        "norm/S": float(flat(dense(s_after)).norm()),
    }
    given = stream_conflict(fitted(r, r_after), fitted(s, s_after))
    assert {name: mean.value for name, mean in given.items()} == pytest.approx(expected, rel=1e-9)
    assert {mean.weight for mean in given.values()} == {1}
    assert abs(expected["conflict/cosine"]) > 0.01


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0), (0, 0.0)])
def test_streams_that_agree_oppose_or_rest(sign, expected):
    """S takes the step that R takes, the opposite one, or none."""
    zero = {key: torch.zeros_like(tensor) for key, tensor in random_adapter("R").items()}
    step = random_adapter("step")
    turned = {key: t * sign if "lora_B" in key else t for key, t in step.items()}
    given = stream_conflict(fitted(zero, step), fitted(zero, turned))
    assert given["conflict/cosine"].value == pytest.approx(expected, abs=1e-12)


def test_two_stream_reports_conflict_and_both_losses_of_each_client():
    played = play(streams(), rounds=2)
    names = {"loss/rectify", "loss/smooth", "conflict/cosine", "norm/R", "norm/S"}
    assert all({*update.metrics} == names for update in played.updates)
    client, toy = played.updates[1], ToyClient("ben")
    smoothed = toy(Stage("", "S", Schedule(2, 0.3), targets="distilled"))
    first = random_adapter("first")
    rectified = toy(Stage("", "R", SETUP.schedule, first, private=smoothed.after, alone=0.5))
    expected = stream_conflict(rectified, smoothed)
    assert {name: client.metrics[name] for name in expected} == expected
    assert client.metrics["loss/smooth"] == smoothed.loss
