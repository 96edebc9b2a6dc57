"""FedProx: by hand, and solved exactly."""

import pytest

from fedsdr.algorithms.fedprox import FedProx, fedprox
from support.parabola_clients import UNLIKE, Parabola, rounds_of, setup
from support.toy_rounds import build, play, same_bits


def test_fedprox_by_hand():
    """Goal 5, mu 1, steps of 1/4, from w^t = 1: the gradient is (w - 5) + (w - w^t).

    Round 1: w = 1: -4, 2: -2, 2.5: -1, 2.75. Round 2, from w^t = 2.75: -2.25, 3.3125: -1.125,
    3.59375: -0.5625, 3.734375. Without the pull round 1 is 1: -4, 2: -3, 2.75: -2.25, 3.3125.
    """
    client = [Parabola(1.0, 5.0)]
    of = setup(3, 0.25)
    pulled = rounds_of(fedprox(of, FedProx(mu=1.0)), client, [[0], [0]], start=1.0)
    assert pulled.w() == [2.75, 3.734375]
    assert rounds_of(fedprox(of, FedProx(mu=0.0)), client, [[0]], start=1.0).w() == [3.3125]


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_fedprox_solved_exactly_is_a_proximal_step(mu):
    """argmin a/2 (w - goal)^2 + mu/2 (w - w^t)^2 = (a goal + mu w^t) / (a + mu)."""
    clients = [client._replace(exact=True) for client in UNLIKE]
    algorithm = fedprox(setup(1, 0.1), FedProx(mu=mu))
    got = rounds_of(algorithm, clients, [[0, 1]] * 4, start=7.0).w()
    w = 7.0
    for each in got:
        w = (4 + mu * w) / (1 + mu) / 4 + (-6 + mu * w) / (3 + mu) * 3 / 4
        assert each == pytest.approx(w, abs=1e-12)


def test_fedprox_pulls_towards_what_was_received():
    played = play(build("fedprox", options={"fedprox": {"mu": 0.3}}))
    for stage in played.stages:
        assert stage.pull is not None
        assert stage.pull.strength == 0.3
        assert same_bits(stage.pull.towards, stage.shared)
