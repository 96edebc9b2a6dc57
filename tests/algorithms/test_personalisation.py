"""Clients' own models: Ditto, FedDPA, training alone, FedSA-LoRA and FedPer.

The local trainer is `tiny.ToyClient`, in float64; some numbers are worked by hand.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch

from fedsdr.algorithms.aggregation import partly_shared as partly
from fedsdr.algorithms.aggregation.fedper import FedPer, block_of, fedper
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Pull,
    Round,
    Schedule,
    Setup,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.local import OWN_ADAPTER
from fedsdr.algorithms.personalisation import ditto as dittos
from fedsdr.algorithms.personalisation import feddpa as duals
from fedsdr.algorithms.personalisation.ditto import Ditto, ditto
from fedsdr.algorithms.table import LORA_AGGREGATION
from fedsdr.algorithms.two_stream import SMOOTHING, Smoothing, two_stream
from fedsdr.core.adapters import (
    FOLDED,
    Adapter,
    Private,
    add,
    factor_of,
    norm,
    plain_factors,
    scale,
    select_tensors,
    subtract,
    unwrap_private,
    weighted_mean,
    zeros_like,
)
from fedsdr.core.errors import UserError
from fedsdr.recipe.choices import read_options
from support.parabola_clients import Parabola, scalar
from support.toy_clients import CLIENTS, RECORDS, SHAPES, ToyClient, random_adapter
from support.toy_rounds import ROUNDS, SCHEDULE, SETUP, build, furthest, play, same_bits

TARGETS = ("", "fedsdr+")  # one stream, and two; what is learnt from is the contract's
every_target = pytest.mark.parametrize("targets", TARGETS)
LEARNT = {"": "raw", "fedsd+": "distilled", "fedsdr+": "raw"}  # by R and by personal adapters
TWO_STREAM = "fedsdr+"


class Turn(NamedTuple):
    """One client's part in one round: what it was asked to train, and what came of it."""

    client: str
    sent: Adapter
    stages: dict[str, Stage]
    fits: dict[str, Fitted]
    update: Update
    state: ClientState  # afterwards


def turns(algorithm: Algorithm, rounds: int = ROUNDS, late: str = "") -> list[list[Turn]]:
    """Rounds of toy clients, by round; `late` is not in the first of them."""
    server = algorithm.init(random_adapter("first"))
    states = {name: ClientState() for name in CLIENTS}
    played = []
    for number in range(1, rounds + 1):
        round = Round(number, number)
        sent, fold = algorithm.broadcast(server), algorithm.start(server, round)
        of_round = []
        for client in CLIENTS:
            if number == 1 and client == late:
                continue
            toy = ToyClient(client)
            update, states[client] = algorithm.client(sent, states[client], toy, round)
            fold = algorithm.add(fold, update)
            names = [stage.name for stage in toy.stages]
            assert len({*names}) == len(names)
            stages = dict(zip(names, toy.stages, strict=True))
            fits = dict(zip(names, toy.fits, strict=True))
            of_round.append(Turn(client, sent, stages, fits, update, states[client]))
        server = algorithm.finish(server, fold, round)
        played.append(of_round)
    return played


def by_client(played: list[list[Turn]]) -> list[list[Turn]]:
    """Each client's turns, in order of rounds."""
    every = [turn for of_round in played for turn in of_round]
    return [[turn for turn in every if turn.client == client] for client in CLIENTS]


def stage_names(targets: str, *personal: str) -> list[str]:
    return [*(["smooth"] if targets == TWO_STREAM else []), "rectify", *personal]


# --- The global model does not know of personal ones

INNER = ("fedavg", "fedprox", "scaffold", "feddyn", "fedadam", "ffa", "rolora", "fedsa", "fedper")
FOLDING = ("flora", "fedex")  # which Ditto cannot pull towards
WEARING = [(inner, "ditto") for inner in INNER] + [(i, "feddpa") for i in (*INNER, *FOLDING)]


@every_target
@pytest.mark.parametrize(("inner", "personal"), WEARING)
def test_the_global_model_is_the_inner_algorithms_to_the_bit(inner, personal, targets):
    alone, worn = play(build(targets + inner)), play(build(f"{targets}{inner}+{personal}"))
    assert same_bits(worn.server, alone.server)
    assert same_bits(worn.updates, alone.updates)
    for mine, plain in zip(worn.updates, alone.updates, strict=True):
        assert mine.weight == plain.weight
        assert mine.metrics.keys() - plain.metrics.keys() == {"loss/personal"}
        assert plain.metrics.items() <= mine.metrics.items()
    # What the client keeps for the inner algorithm is the same, and one adapter more.
    for client in CLIENTS:
        mine, plain = worn.clients[client], alone.clients[client]
        assert mine.private.keys() - plain.private.keys() == {personal}
        assert same_bits({k: mine.private[k] for k in plain.private}, dict(plain.private))
        assert same_bits(dict(mine.memory), dict(plain.memory))


@every_target
@pytest.mark.parametrize("personal", ["ditto", "feddpa"])
def test_what_is_deployed_and_sent_is_the_inner_algorithms(personal, targets):
    inner, worn = build(targets + "fedavg"), build(targets + personal)
    server = play(worn).server
    for part in ("broadcast", "deployed"):
        assert same_bits(getattr(worn, part)(server), getattr(inner, part)(server))


# --- The client's model: what of it is the server's, and what the client's own


class Model(NamedTuple):
    """Of W0 + R + S: whether R is the received one; what completes or gives R; what is beside."""

    shared: bool
    own: str | None
    private: str | None


MODELS = {
    "fedavg": Model(True, None, None),
    "scaffold": Model(True, None, None),
    "local": Model(False, OWN_ADAPTER, None),
    "fedsa": Model(True, partly.OWN_PART, None),
    "fedper": Model(True, partly.OWN_PART, None),
    "ditto": Model(False, dittos.DITTO_ADAPTER, None),
    "feddpa": Model(True, None, duals.FEDDPA_ADAPTER),
    "fedsa+ditto": Model(False, dittos.DITTO_ADAPTER, None),
    "fedper+feddpa": Model(True, partly.OWN_PART, duals.FEDDPA_ADAPTER),
    "scaffold+ditto": Model(False, dittos.DITTO_ADAPTER, None),
    "scaffold+fedsa+feddpa": Model(True, partly.OWN_PART, duals.FEDDPA_ADAPTER),
}


@every_target
@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_a_client(name, targets):
    algorithm, model = build(targets + name), MODELS[name]
    played = play(algorithm)
    sent = algorithm.broadcast(played.server)
    beside = model.private or (SMOOTHING if targets == TWO_STREAM else None)
    for state in played.clients.values():
        personal = algorithm.personal(sent, state)
        assert (personal.shared is not None) == model.shared
        if personal.shared is not None:
            assert same_bits(personal.shared, plain_factors(sent))
        assert personal.own is (state.private[model.own] if model.own else None)
        assert personal.private is (state.private[beside] if beside else None)
        # R is whole: the two parts of it have all its tensors, and none twice.
        parts = [*(personal.shared or {}), *unwrap_private(personal.own)]
        assert sorted(parts) == sorted(SHAPES)


@every_target
@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_a_client_that_has_not_taken_part(name, targets):
    """Whatever the server sends, and nothing else."""
    algorithm = build(targets + name)
    sent = algorithm.broadcast(algorithm.init(random_adapter("first")))
    personal = algorithm.personal(sent, ClientState())
    assert personal.own is personal.private is None
    if name == "local":
        assert personal.shared is None
    else:
        assert same_bits(personal.shared, plain_factors(sent))


# --- Ditto


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


# --- FedDPA


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


# --- Training alone


@every_target
def test_local_training_sends_nothing_and_keeps_a_model_of_its_own(targets):
    algorithm = build(targets + "local")
    first = algorithm.init(random_adapter("first"))
    played = play(algorithm)
    assert same_bits(played.server, first)
    assert algorithm.broadcast(played.server) == algorithm.deployed(played.server) == {}
    assert algorithm.uploads(played.server, Round(1, 1)) == {}
    assert all(update.change == {} for update in played.updates)
    for mine in by_client(turns(algorithm)):
        own = s = None
        for turn in mine:
            assert [*turn.stages] == stage_names(targets)
            stage = turn.stages["rectify"]
            assert stage.shared is None
            assert stage.own is own
            assert stage.private is turn.state.private.get(SMOOTHING)
            if targets == TWO_STREAM:
                assert turn.stages["smooth"].private is s
                assert turn.stages["smooth"].targets == "distilled"
            assert stage.targets == LEARNT[targets]
            own, s = turn.state.private[OWN_ADAPTER], turn.state.private.get(SMOOTHING)


@every_target
def test_local_training_does_not_depend_on_who_else_is_there(targets):
    algorithm = build(targets + "local")
    together = play(algorithm)
    for client in CLIENTS:
        assert same_bits(play(algorithm, [client]).clients[client], together.clients[client])
    owns = [unwrap_private(together.clients[client].private[OWN_ADAPTER]) for client in CLIENTS]
    assert furthest(owns[0], owns[1]) > 0.1


@pytest.mark.parametrize(("targets", "learnt"), [("", "raw"), ("fedsd+", "distilled")])
def test_local_training_written_out(targets, learnt):
    """Gradient descent from nothing: (1 - 0.9^9) of the way to the goal in nine steps of 0.1."""
    played = play(build(targets + "local"))
    way = 1 - (1 - SCHEDULE.lr) ** (SCHEDULE.steps * ROUNDS)
    for client in CLIENTS:
        wanted = scale(random_adapter("goal", client, learnt), way)
        assert furthest(unwrap_private(played.clients[client].private[OWN_ADAPTER]), wanted) < 1e-12


# --- FedSA-LoRA and FedPer: some of R is everybody's, some a client's own

SENT = {
    "fedsa": {key for key in SHAPES if factor_of(key) == "A"},
    "fedper": {key for key in SHAPES if key.startswith("layers.0.")},
}
every_split = pytest.mark.parametrize("name", SENT)


@every_target
@every_split
@pytest.mark.parametrize("inner", ["fedavg", "fedprox", "scaffold", "feddyn", "fedyogi"])
def test_exactly_the_shared_part_is_sent(name, inner, targets):
    algorithm = build(f"{targets}{inner}+{name}")
    played = play(algorithm)
    sent = SENT[name]
    both = sent | {"control/" + key for key in sent} if inner == "scaffold" else sent
    assert played.server.adapter.keys() == sent
    assert algorithm.broadcast(played.server).keys() == both
    assert algorithm.deployed(played.server) == {}
    for update in played.updates:
        assert update.change.keys() == both
    for memory in played.server.memory.values():
        assert memory.keys() == sent
    for state in played.clients.values():
        own = state.private[partly.OWN_PART]
        assert type(own) is Private
        assert unwrap_private(own).keys() == SHAPES.keys() - sent
        for memory in state.memory.values():
            assert memory.keys() == sent


@every_split
def test_the_first_broadcast_is_the_shared_part_of_the_first_adapter(name):
    algorithm = build(name)
    first = random_adapter("first")
    state = algorithm.init(first)
    assert same_bits(algorithm.broadcast(state), {key: first[key] for key in SENT[name]})
    assert algorithm.uploads(state, Round(1, 1)).keys() == SENT[name]


@pytest.mark.parametrize("targets", ["", "fedsd+"])
@every_split
def test_the_shared_part_is_averaged_and_the_other_goes_on(name, targets):
    """The round written out: all of R is trained, the shared part replaced by its mean."""
    whole = {client: dict(random_adapter("first")) for client in CLIENTS}
    for client in CLIENTS:
        whole[client].update(
            {key: torch.zeros_like(t) for key, t in whole[client].items() if key not in SENT[name]}
        )
    algorithm = build(targets + name)
    for rounds in range(1, ROUNDS + 1):
        for client in CLIENTS:
            stage = Stage("", "R", SCHEDULE, whole[client], targets=LEARNT[targets])
            whole[client] = ToyClient(client)(stage).shared
        mean = weighted_mean((whole[client], RECORDS[client]) for client in CLIENTS)
        for client in CLIENTS:
            whole[client].update({key: mean[key] for key in SENT[name]})
        played = play(algorithm, rounds=rounds)
        sent = algorithm.broadcast(played.server)
        for client in CLIENTS:
            personal = algorithm.personal(sent, played.clients[client])
            together = {**(personal.shared or {}), **unwrap_private(personal.own)}
            assert furthest(together, whole[client]) < 1e-12


@every_target
@every_split
def test_every_stage_has_the_clients_own_part_of_the_last_round(name, targets):
    for mine in by_client(turns(build(targets + name), late="ben")):
        own = None
        for turn in mine:
            assert [*turn.stages] == stage_names(targets)
            assert turn.stages["rectify"].own is own
            assert same_bits(turn.stages["rectify"].shared, turn.sent)
            own = turn.state.private[partly.OWN_PART]
            assert own is turn.fits["rectify"].own


@every_split
def test_in_the_joint_context_the_private_stream_learns_on_the_whole_of_r(name):
    """What was received, and the client's own part as it was before the round."""
    inner = LORA_AGGREGATION[name].build(fedavg(SETUP), read_options(name, {}))
    options = Smoothing(Schedule(2, 0.3), state="keep", context="joint", alone=0.5)
    for mine in by_client(turns(two_stream(inner, options))):
        own = None
        for turn in mine:
            assert same_bits(turn.stages["smooth"].shared, turn.sent)
            assert turn.stages["smooth"].own is own
            own = turn.state.private[partly.OWN_PART]


# --- FedPer's blocks


def blocks(*numbers: int, path: str = "model.layers.{}.attention.q_proj") -> Adapter:
    """An adapter of one layer in each of these blocks."""
    made: Adapter = {}
    for n in numbers:
        made[path.format(n) + ".lora_A.weight"] = torch.zeros(1, 2)
        made[path.format(n) + ".lora_B.weight"] = torch.zeros(3, 1)
    return made


def lower(first: Adapter, share: float) -> list[int]:
    algorithm = fedper(fedavg(SETUP), FedPer(share=share))
    sent = algorithm.broadcast(algorithm.init(first))
    assert all(same_bits(sent[key], first[key]) for key in sent)
    numbers = sorted({block_of(key) for key in sent})
    assert sent.keys() == blocks(*numbers).keys()  # both factors of each
    return numbers


@pytest.mark.parametrize(
    ("of", "share", "shared"),
    [
        (range(12), 0.25, range(9)),  # 10 and 11 are above 2, whatever their names' order
        (range(12), 0.5, range(6)),
        (range(12), 0.01, range(11)),  # at least one stays
        (range(12), 0.9, range(1)),
        (range(3), 0.5, range(1)),  # of three, 1.5 is two
        (range(2), 0.5, range(1)),
        ((3, 20, 100), 0.5, (3,)),  # where only some blocks are adapted, those count
        ((20, 3, 100), 0.3, (3, 20)),
    ],
)
def test_the_topmost_blocks_stay_with_the_client(of, share, shared):
    assert lower(blocks(*of), share) == [*shared]


def test_a_block_is_the_first_number_of_a_path():
    assert block_of("model.layers.10.mlp.experts.3.up_proj") == 10
    assert block_of("h.7.attn.c_attn") == 7
    assert block_of("3.q_proj") == 3
    assert block_of("h.3") == 3
    assert block_of("block2.layers.5.q") == 5


@pytest.mark.parametrize(
    ("first", "share", "reason"),
    [
        (blocks(0), 0.5, "all 1 adapted blocks would stay"),
        (blocks(0, 1), 0.6, "all 2 adapted blocks would stay"),
        (blocks(*range(5)), 0.81, "all 5 adapted blocks would stay"),
        (blocks(0, path="model.head.proj"), 0.5, "'model.head.proj' has no number"),
        (blocks(0, path="mlp2.up"), 0.5, "'mlp2.up' has no number"),
        (
            {**blocks(0, 1), **blocks(0, path="lm_head")},
            0.5,
            "'lm_head' has no number",
        ),
    ],
)
def test_fedper_refuses_what_it_cannot_split(first: Adapter, share: float, reason: str):
    algorithm = fedper(fedavg(SETUP), FedPer(share=share))
    with pytest.raises(UserError, match="fedper") as caught:
        algorithm.init(first)
    assert reason in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, math.nan])
def test_fedper_refuses_shares_that_are_none(share):
    with pytest.raises(UserError, match=r"options\.fedper\.share"):
        build("fedper", options={"fedper": {"share": share}})


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
