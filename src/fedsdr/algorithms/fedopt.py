"""Server optimisers: the mean change of a round is a step's pseudo-gradient.

FedAvgM: Hsu et al. 2019 (arXiv 1909.06335). FedAdagrad, FedAdam, FedYogi: Reddi et al. 2021
(arXiv 2003.00295), Algorithm 2. With D_t the mean of the changes, weighted by records, and all
products coordinate by coordinate:

    m_t = beta1 m_{t-1} + (1 - beta1) D_t
    v_t = v_{t-1} + D_t^2                                            FedAdagrad
    v_t = v_{t-1} - (1 - beta2) D_t^2 sign(v_{t-1} - D_t^2)          FedYogi
    v_t = beta2 v_{t-1} + (1 - beta2) D_t^2                          FedAdam
    w_{t+1} = w_t + lr m_t / (sqrt(v_t) + tau),    m_0 = 0, v_0 = tau^2

No bias correction, as in the paper.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedsdr.algorithms.contract import Algorithm, Options, Round, ServerState, Setup
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core.adapters import Adapter, WeightedSum, add, scale, zeros_like

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
SecondMoment = Callable[[Tensor, Tensor], Tensor]  # v_{t-1}, D_t -> v_t

FIRST, SECOND = "m", "v"


class FedAvgM(Options):
    """lr = 1 and momentum = 0 are FedAvg."""

    lr: Rate = 1.0
    """The server's learning rate."""
    momentum: Decay = 0.9
    """The share of the last step that is added to the next."""
    dampening: Decay = 0.0
    """Scales a round's change by 1 - dampening from the second round on, as in `torch.optim.SGD`.
    0.9 makes the momentum a mean of changes, as in OpenFedLLM."""


class Adaptive(Options):
    """Options of the adaptive server optimisers."""

    lr: Rate = 1e-2
    """The server's learning rate: about the size of a coordinate's step in a round."""
    beta1: Decay = 0.9
    """The decay of the first moment."""
    beta2: Decay = 0.99
    """The decay of the second moment."""
    tau: Rate = 1e-3
    """The adaptivity: a coordinate whose change is below tau takes smaller steps."""


class FedAdagrad(Options):
    """As `Adaptive`, without a decay of the second moment."""

    lr: Rate = 1e-2
    """The server's learning rate: about the size of a coordinate's first step."""
    beta1: Decay = 0.0
    """The decay of the first moment; the paper's choice is 0."""
    tau: Rate = 1e-3
    """The adaptivity: a coordinate whose change is below tau takes smaller steps."""


def fedavgm(setup: Setup, options: FedAvgM) -> Algorithm:
    """FedAvg with server momentum: m_t = momentum m_{t-1} + D_t, w_{t+1} = w_t + lr m_t.

    With dampening d it is m_t = momentum m_{t-1} + (1 - d) D_t, and m_1 = D_1 all the same; where
    tensors take turns, a tensor's first round is the first in which it has its turn.
    """

    def moment(last: Tensor, change: Tensor) -> Tensor:
        begun = bool(last.any())
        return options.momentum * last + (1 - options.dampening if begun else 1) * change

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        mean, last = fold.mean(like=state.adapter), state.memory[FIRST]
        m = {key: moment(last[key], mean[key]) for key in mean}
        return ServerState(add(state.adapter, scale(m, options.lr)), {**state.memory, FIRST: m})

    return fedavg(setup)._replace(
        init=lambda first: ServerState(first, {FIRST: zeros_like(first)}), finish=finish
    )


def fedadagrad(setup: Setup, options: FedAdagrad) -> Algorithm:
    """FedAvg with Adagrad at the server."""
    return _adaptive(setup, options.lr, options.beta1, options.tau, lambda v, d: v + d * d)


def fedadam(setup: Setup, options: Adaptive) -> Algorithm:
    """FedAvg with Adam at the server."""

    def second(v: Tensor, d: Tensor) -> Tensor:
        return options.beta2 * v + (1 - options.beta2) * d * d

    return _adaptive(setup, options.lr, options.beta1, options.tau, second)


def fedyogi(setup: Setup, options: Adaptive) -> Algorithm:
    """FedAvg with Yogi at the server."""

    def second(v: Tensor, d: Tensor) -> Tensor:
        return v - (1 - options.beta2) * d * d * (v - d * d).sign()

    return _adaptive(setup, options.lr, options.beta1, options.tau, second)


def _adaptive(setup: Setup, lr: float, beta1: float, tau: float, second: SecondMoment) -> Algorithm:
    """Algorithm 2 of Reddi et al., given its rule for v_t."""

    def init(first: Adapter) -> ServerState:
        zeros = zeros_like(first)
        return ServerState(first, {FIRST: zeros, SECOND: {k: t + tau**2 for k, t in zeros.items()}})

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        mean = fold.mean(like=state.adapter)
        m = add(scale(state.memory[FIRST], beta1), scale(mean, 1 - beta1))
        v = {key: second(state.memory[SECOND][key], mean[key]) for key in mean}
        step = {key: lr * m[key] / (v[key].sqrt() + tau) for key in mean}
        return ServerState(add(state.adapter, step), {**state.memory, FIRST: m, SECOND: v})

    return fedavg(setup)._replace(init=init, finish=finish)
