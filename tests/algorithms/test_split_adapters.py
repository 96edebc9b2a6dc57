"""FedSA-LoRA and FedPer: some of R is shared, some a client's own."""

import math

import pytest
import torch

from fedsdr.algorithms.aggregation import partly_shared as partly
from fedsdr.algorithms.aggregation.fedper import FedPer, block_of, fedper
from fedsdr.algorithms.contract import (
    Round,
    Schedule,
    Stage,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.table import LORA_AGGREGATION
from fedsdr.algorithms.two_stream import Smoothing, two_stream
from fedsdr.core.adapters import (
    Adapter,
    Private,
    factor_of,
    unwrap_private,
    weighted_mean,
)
from fedsdr.core.errors import UserError
from fedsdr.recipe.choices import read_options
from support.personal_turns import LEARNT, by_client, every_target, stage_names, turns
from support.toy_clients import CLIENTS, RECORDS, SHAPES, ToyClient, random_adapter
from support.toy_rounds import ROUNDS, SCHEDULE, SETUP, build, furthest, play, same_bits

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
