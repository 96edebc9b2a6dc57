"""Clients' own models: what of them is the server's, and that the global model stays the same."""

from typing import NamedTuple

import pytest

from fedsdr.algorithms.aggregation import partly_shared as partly
from fedsdr.algorithms.contract import (
    ClientState,
    Round,
)
from fedsdr.algorithms.local import OWN_ADAPTER
from fedsdr.algorithms.personalisation import ditto as dittos
from fedsdr.algorithms.personalisation import feddpa as duals
from fedsdr.algorithms.two_stream import SMOOTHING
from fedsdr.core.adapters import (
    plain_factors,
    scale,
    unwrap_private,
)
from support.personal_turns import LEARNT, TWO_STREAM, by_client, every_target, stage_names, turns
from support.toy_clients import CLIENTS, SHAPES, random_adapter
from support.toy_rounds import ROUNDS, SCHEDULE, build, furthest, play, same_bits

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
