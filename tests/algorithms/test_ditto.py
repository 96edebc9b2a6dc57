"""Ditto: by hand, solved exactly, and what it asks of the trainer."""

import math
from typing import Any

import pytest

from fedsdr.algorithms.aggregation import partly_shared as partly
from fedsdr.algorithms.contract import (
    ClientState,
    Pull,
    Round,
    Schedule,
    Setup,
    Stage,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.personalisation import ditto as dittos
from fedsdr.algorithms.personalisation.ditto import Ditto, ditto
from fedsdr.algorithms.two_stream import SMOOTHING
from fedsdr.core.adapters import (
    Private,
    add,
    plain_factors,
    scale,
    subtract,
    unwrap_private,
    zeros_like,
)
from fedsdr.core.errors import UserError
from support.parabola_clients import Parabola, scalar
from support.personal_turns import LEARNT, TWO_STREAM, by_client, every_target, stage_names, turns
from support.toy_clients import CLIENTS, SHAPES, ToyClient, random_adapter
from support.toy_rounds import ROUNDS, SCHEDULE, build, furthest, play, same_bits


def dittos_of_one(client: Parabola, options: Ditto, schedule: Schedule, rounds: int) -> Any:
    """The global w and the personal v of a federation of one, after each round; from 0."""
    algorithm = ditto(fedavg(Setup(schedule)), options, schedule)
    server, state = algorithm.init(scalar(0.0)), ClientState()
    ws, vs = [], []
    for t in range(1, rounds + 1):
        round = Round(t, t)
        update, state = algorithm.client(algorithm.broadcast(server), state, client, round)
        fold = algorithm.add(algorithm.start(server, round), update)
        server = algorithm.finish(server, fold, round)
        ws.append(server.adapter["w"].item())
        vs.append(unwrap_private(state.private[dittos.DITTO_ADAPTER])["w"].item())
    return ws, vs


def test_ditto_by_hand():
    """Goal 4, strength 1, two steps of 1/4 a round, w^0 = v = 0.

    Round 1, w^t = 0:    w = 0, 1, 1.75              along w - 4
                         v = 0, 1, 1.5               along (v - 4) + (v - 0) = -4, -2
    Round 2, w^t = 1.75: w = 1.75, 2.3125, 2.734375
                         v = 1.5, 2.1875, 2.53125    along (v - 4) + (v - 1.75) = -2.75, -1.375

    Pulled towards the w that the client sends, v would be 1.9375 after the first round.
    """
    ws, vs = dittos_of_one(Parabola(1.0, 4.0), Ditto(strength=1.0), Schedule(2, 0.25), 2)
    assert ws == [1.75, 2.734375]
    assert vs == [1.5, 2.53125]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1e9])
def test_ditto_solved_exactly_lies_between_the_goal_and_the_received_adapter(strength):
    """(goal + strength w^t) / (1 + strength), from w^t = 0 and then 4, which FedAvg has found."""
    client = Parabola(1.0, 4.0, exact=True)
    ws, vs = dittos_of_one(client, Ditto(strength=strength), Schedule(2, 0.25), 2)
    assert ws == [4.0, 4.0]
    assert vs == pytest.approx([4 / (1 + strength), 4.0], abs=1e-12)


@every_target
@pytest.mark.parametrize("strength", [0.0, 9.0, 1e6])
def test_ditto_lies_between_the_clients_optimum_and_the_received_adapter(targets, strength):
    """A step of 1 / (1 + strength) goes to (goal - S + strength w^t) / (1 + strength) at once."""
    one = Schedule(1, 1 / (1 + strength))
    inner = build(targets + "fedavg")
    algorithm = ditto(inner, Ditto(strength=strength), one, LEARNT[targets])
    for turn in (turn for of_round in turns(algorithm) for turn in of_round):
        goal = random_adapter("goal", turn.client, LEARNT[targets])
        s = unwrap_private(turn.state.private.get(SMOOTHING)) or zeros_like(goal)
        wanted = scale(add(subtract(goal, s), scale(turn.sent, strength)), 1 / (1 + strength))
        v = unwrap_private(turn.state.private[dittos.DITTO_ADAPTER])
        assert furthest(v, wanted) < 1e-9
        assert (furthest(v, turn.sent) < 1e-4) == (strength == 1e6)


@pytest.mark.parametrize("targets", ["", "fedsd+"])
def test_ditto_without_strength_is_training_alone_from_the_first_adapter(targets):
    """In an adapter of its own, whatever the federation does meanwhile."""
    options = {"ditto": {"strength": 0.0, "steps": 4}}
    played = play(build(targets + "fedadam+ditto", options=options))
    for client in CLIENTS:
        v = Private(random_adapter("first"))
        for _ in range(ROUNDS):
            stage = Stage("", "R", Schedule(4, SCHEDULE.lr), own=v, targets=LEARNT[targets])
            v = ToyClient(client)(stage).after
        mine = unwrap_private(played.clients[client].private[dittos.DITTO_ADAPTER])
        assert furthest(mine, unwrap_private(v)) < 1e-12


@every_target
@pytest.mark.parametrize("inner", ["fedavg", "scaffold"])
def test_what_ditto_asks_of_the_trainer(inner, targets):
    """Its first start is the received adapter, its later ones its own; no shift, nothing alone."""
    options = {"ditto": {"strength": 0.7, "steps": 5}}
    algorithm = build(f"{targets}{inner}+ditto", options=options)
    for mine in by_client(turns(algorithm, late="ben")):
        v = None
        for turn in mine:
            assert [*turn.stages] == stage_names(targets, "personal")
            stage, received = turn.stages["personal"], plain_factors(turn.sent)
            s = turn.state.private.get(SMOOTHING)
            assert stage.pull is not None
            assert same_bits(stage.pull.towards, received)
            if v is None:
                assert same_bits(stage.shared, received)
                assert stage.own is None
            else:
                assert stage.shared is None
                assert stage.own is v
            assert stage == Stage(
                "personal", "R", Schedule(5, SCHEDULE.lr), stage.shared, stage.own, s,
                targets=LEARNT[targets], pull=Pull(stage.pull.towards, 0.7),
            )  # fmt: skip
            assert (s is None) == (targets != TWO_STREAM)
            v = turn.state.private[dittos.DITTO_ADAPTER]
            assert v is turn.fits["personal"].after


def test_ditto_takes_as_many_steps_as_the_global_adapter_where_nothing_is_said():
    stages = [stage for stage in play(build("ditto")).stages if stage.name == "personal"]
    assert {stage.schedule for stage in stages} == {SCHEDULE}
    assert {stage.pull.strength for stage in stages if stage.pull} == {Ditto().strength}


@every_target
@pytest.mark.parametrize("aggregation", ["fedsa", "fedper"])
def test_ditto_pulls_only_what_is_shared(aggregation, targets):
    """Towards the received part; its start has the client's own other part, just trained."""
    for mine in by_client(turns(build(f"{targets}{aggregation}+ditto"))):
        for turn in mine:
            stage = turn.stages["personal"]
            assert same_bits(stage.pull.towards, turn.sent)
            assert 0 < len(turn.sent) < len(SHAPES)
        first, second = mine[0].stages["personal"], mine[1].stages["personal"]
        assert same_bits(first.shared, mine[0].sent)
        assert first.own is mine[0].state.private[partly.OWN_PART]
        assert second.shared is None
        assert sorted(unwrap_private(second.own)) == sorted(SHAPES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("strength", {"strength": -1.0}),
        ("strength", {"strength": math.inf}),
        ("strength", {"strength": math.nan}),
        ("steps", {"steps": 0}),
        ("lambda", {"lambda": 1.0}),
    ],
)
def test_ditto_refuses_options_that_are_none(name, options):
    with pytest.raises(UserError, match=rf"options\.ditto\.{name}"):
        build("ditto", options={"ditto": options})
