"""FedDyn: against the paper's algorithm written out, and by hand."""

from collections.abc import Sequence

import pytest

from fedsdr.algorithms.contract import (
    ClientState,
    Round,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.feddyn import GRADIENT, FedDyn, feddyn
from fedsdr.core.adapters import (
    scale,
)
from support.parabola_clients import (
    THREE,
    UNLIKE,
    Cohorts,
    Parabola,
    optimum,
    rounds_of,
    scalar,
    setup,
    some,
)


def paper_feddyn(
    clients: Sequence[Parabola], cohorts: Cohorts, alpha: float
) -> tuple[list[float], list[float], list[float]]:
    """Acar et al. 2021, Algorithm 1: theta and h by round, and the clients' last gradients.

    argmin L_k(w) - <grad_k, w> + alpha/2 (w - theta)^2 is where
    a_k (w - goal_k) - grad_k + alpha (w - theta) = 0. Means are weighted by records.
    """
    n = sum(client.records for client in clients)
    theta = h = 0.0
    gradients = [0.0 for _ in clients]
    thetas, hs = [], []
    for cohort in cohorts:
        solved = {}
        for k in cohort:
            a, goal = clients[k].curvature, clients[k].goal
            solved[k] = (a * goal + gradients[k] + alpha * theta) / (a + alpha)
            gradients[k] = gradients[k] - alpha * (solved[k] - theta)
        h = h - alpha * sum(clients[k].records / n * (solved[k] - theta) for k in cohort)
        in_cohort = sum(clients[k].records for k in cohort)
        theta = sum(clients[k].records * solved[k] for k in cohort) / in_cohort - h / alpha
        thetas.append(theta)
        hs.append(h)
    return thetas, hs, gradients


@pytest.mark.parametrize("alpha", [0.3, 2.0])
@pytest.mark.parametrize("records", [(1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 6, some(9, 3)], ids=["all", "some"])
def test_feddyn_is_the_papers(records, cohorts, alpha):
    clients = [
        client._replace(records=n, exact=True) for client, n in zip(THREE, records, strict=True)
    ]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=alpha))
    rounds = rounds_of(algorithm, clients, cohorts)
    thetas, hs, gradients = paper_feddyn(clients, cohorts, alpha)
    assert rounds.w() == pytest.approx(thetas, abs=1e-11)
    assert rounds.of_server(GRADIENT) == pytest.approx(hs, abs=1e-11)
    assert rounds.of_clients(GRADIENT) == pytest.approx(gradients, abs=1e-11)


def test_feddyn_by_hand():
    """alpha 1, one round from 0, all h zero: w_1 = 4 / 2 = 2, w_2 = -6 / 4 = -1.5.

    h_1 = -2, h_2 = 1.5, h = (-2 + 3 x 1.5) / 4 = 0.625,
    w = (2 - 3 x 1.5) / 4 - 0.625 = -1.25.
    """
    clients = [client._replace(exact=True) for client in UNLIKE]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=1.0))
    rounds = rounds_of(algorithm, clients, [[0, 1]])
    assert rounds.of_clients(GRADIENT) == [-2.0, 1.5]
    assert rounds.of_server(GRADIENT) == [0.625]
    assert rounds.w() == [-1.25]


def test_what_a_feddyn_client_keeps_is_its_gradient_at_its_optimum():
    clients = [client._replace(exact=True) for client in THREE]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=0.7))
    state, shared = ClientState(), scalar(3.0)
    for _ in range(3):
        update, state = algorithm.client(shared, state, clients[1], Round(1, 1))
        solved = shared["w"].item() + update.change["w"].item()
        h = state.memory[GRADIENT]["w"].item()
        assert h == pytest.approx(clients[1].gradient(solved), abs=1e-12)
        shared = scale(shared, 0.5)


@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 300, some(300, 3)], ids=["all", "some"])
def test_feddyn_finds_the_optimum_where_fedavg_does_not(cohorts):
    clients = [client._replace(exact=True) for client in THREE]
    of = setup(1, 0.1)
    rounds = rounds_of(feddyn(of, FedDyn(alpha=1.0)), clients, cohorts)
    assert rounds.w()[-1] == pytest.approx(optimum(clients), abs=1e-9)
    plain = rounds_of(fedavg(of), clients, [[0, 1, 2]]).w()[-1]
    assert plain == pytest.approx((2 * 4 + 1 * -2 + 5 * 1) / 8)  # of their own optima
    assert abs(plain - optimum(clients)) > 0.1
