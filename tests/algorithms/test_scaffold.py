"""SCAFFOLD: against the paper's algorithm written out, and by hand."""

from collections.abc import Sequence

import pytest

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.scaffold import CONTROL, Scaffold, scaffold
from support.parabola_clients import (
    OPTIMUM,
    THREE,
    UNLIKE,
    Cohorts,
    Parabola,
    optimum,
    rounds_of,
    setup,
    some,
)
from support.toy_clients import CLIENTS, random_adapter
from support.toy_rounds import build, furthest, play, same_bits

FIRST = random_adapter("first")


def test_the_optimum_of_the_example():
    assert optimum(UNLIKE) == pytest.approx(OPTIMUM)


def test_scaffold_by_hand():
    """Two steps of 1/4 in each round; weights 1/4 and 3/4.

    Round 1, all controls zero, x = 0:
        y_1 = 0, 1, 1.75 along -4, -3: c_1 = -3.5
        y_2 = 0, -1.5, -1.875 along 6, 1.5: c_2 = 3.75
        x = (1.75 - 3 x 1.875) / 4 = -0.96875, c = (-3.5 + 3 x 3.75) / 4 = 1.9375
    Round 2:
        g_1 = -4.96875 and -5.0859375, shifted by 1.9375 + 3.5: c_1 = -5.02734375
        g_2 = 3.09375 and 2.1328125, shifted by 1.9375 - 3.75: c_2 = 2.61328125
        y_1 = x - 0.205078125, y_2 = x - 0.400390625
        x = -1.3203125, c = 0.703125
    """
    algorithm = scaffold(setup(2, 0.25), Scaffold())
    rounds = rounds_of(algorithm, UNLIKE, [[0, 1]] * 2)
    assert rounds.w() == [-0.96875, -1.3203125]
    assert rounds.of_server(CONTROL) == [1.9375, 0.703125]
    assert rounds.of_clients(CONTROL) == [-5.02734375, 2.61328125]


def paper_scaffold(
    clients: Sequence[Parabola], cohorts: Cohorts, steps: int, lr: float, server_lr: float
) -> tuple[list[float], list[float], list[float]]:
    """Karimireddy et al. 2020, Algorithm 1, option II: x and c by round, and the last c_i.

    Its means over |S| and its |S| / N are weighted here by records, and so equal with equal ones.
    """
    n = sum(client.records for client in clients)
    x = c = 0.0
    controls = [0.0 for _ in clients]
    xs, cs = [], []
    for cohort in cohorts:
        in_cohort = sum(clients[i].records for i in cohort)
        dx = dc = 0.0
        for i in cohort:
            y = x
            for _ in range(steps):
                y = y - lr * (clients[i].gradient(y) - controls[i] + c)
            plus = controls[i] - c + (x - y) / (steps * lr)
            dx += clients[i].records / in_cohort * (y - x)
            dc += clients[i].records / in_cohort * (plus - controls[i])
            controls[i] = plus
        x, c = x + server_lr * dx, c + in_cohort / n * dc
        xs.append(x)
        cs.append(c)
    return xs, cs, controls


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("records", [(1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 6, some(9, 3)], ids=["all", "some"])
def test_under_gradient_descent_scaffold_is_the_papers_option_two(records, cohorts, server_lr):
    clients = [client._replace(records=n) for client, n in zip(THREE, records, strict=True)]
    algorithm = scaffold(setup(3, 0.1), Scaffold(lr=server_lr))
    rounds = rounds_of(algorithm, clients, cohorts)
    xs, cs, controls = paper_scaffold(clients, cohorts, 3, 0.1, server_lr)
    assert rounds.w() == pytest.approx(xs, abs=1e-12)
    assert rounds.of_server(CONTROL) == pytest.approx(cs, abs=1e-12)
    assert rounds.of_clients(CONTROL) == pytest.approx(controls, abs=1e-12)


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
def test_the_first_round_of_scaffold_is_fedavg_to_the_bit(targets):
    plain, corrected = (play(build(targets + name), rounds=1) for name in ("fedavg", "scaffold"))
    assert same_bits(corrected.server.adapter, plain.server.adapter)
    # And the second is not, where some are missing: toy clients are of one curvature, so that
    # the corrections of all of them cancel in the mean.
    plain, corrected = (
        play(build(targets + name), rounds=2, cohorts=lambda number: CLIENTS[number - 1 :])
        for name in ("fedavg", "scaffold")
    )
    assert furthest(corrected.server.adapter, plain.server.adapter) > 1e-3


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
def test_scaffold_sends_both_changes_and_keeps_its_control(targets):
    played = play(build(targets + "scaffold"), rounds=2)
    for update in played.updates:
        assert update.change.keys() == {p + key for key in FIRST for p in ("", CONTROL)}
    # Of the last round: what a client keeps is the mean gradient of its training.
    rectified = [
        fitted
        for stage, fitted in zip(played.stages, played.fits, strict=True)
        if stage.trains == "R"
    ]
    for client, fitted in zip(CLIENTS, rectified[-len(CLIENTS) :], strict=True):
        assert same_bits(played.clients[client].memory[CONTROL], fitted.gradient)


def test_scaffold_finds_the_optimum_where_fedavg_does_not():
    """With 20 local steps clients come near their own optima, and FedAvg near the mean of those.

    Its fixed point is sum p_k r_k goal_k / sum p_k r_k, r_k = 1 - (1 - lr a_k)^20: -0.64, and
    -0.5 with more steps. SCAFFOLD's is the optimum, -1.4, where sum p_k F_k' = 0.
    """
    of = setup(20, 0.1)
    plain = rounds_of(fedavg(of), UNLIKE, [[0, 1]] * 60).w()[-1]
    reach = [1 - (1 - 0.1 * client.curvature) ** 20 for client in UNLIKE]
    fixed = (reach[0] * 4.0 - 3 * reach[1] * 2.0) / (reach[0] + 3 * reach[1])
    assert plain == pytest.approx(fixed, abs=1e-9)
    assert fixed == pytest.approx(-0.6402, abs=1e-4)
    corrected = rounds_of(scaffold(of, Scaffold()), UNLIKE, [[0, 1]] * 200)
    assert corrected.w()[-1] == pytest.approx(OPTIMUM, abs=1e-9)
    # There each control is its client's gradient, and their weighted sum nothing.
    gradients = [client.gradient(OPTIMUM) for client in UNLIKE]
    assert corrected.of_clients(CONTROL) == pytest.approx(gradients, abs=1e-8)
    assert corrected.of_server(CONTROL)[-1] == pytest.approx(0.0, abs=1e-8)
