"""What a server may ask under a recipe: the rounds, and what an adapter that it sends is like."""

from typing import Final

from fedsdr.algorithms.contract import Algorithm, check_broadcast
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    layer_paths,
    plain_factors,
    size_in_bytes,
)
from fedsdr.deploy.client.journal import RefusalError
from fedsdr.deploy.protocol.messages import MOST, Request
from fedsdr.recipe.sections.recipe import Recipe

HEADERS: Final = 2**20  # bytes of a request that has no tensors, at most
QUESTION_HEADER: Final = 2**10  # bytes of a tensor's name, shape and place


def check_question(request: Request, recipe: Recipe, algorithm: Algorithm, first: Adapter) -> None:
    """Raise `RefusalError` for a round that has no such question, and for tensors that no server
    of this recipe has to send.

    recipe, algorithm: of the request's method. first: an adapter of the client's model.
    """
    last, round = recipe.federation.rounds, request.round
    wrong = {
        "prepare": (round != 0, f"data are prepared before the rounds, not in round {round}"),
        "fit": (not 1 <= round <= last, f"there is no round {round} of {last} to train in"),
        "evaluate": (round > last, f"there is no round {round} of {last} to evaluate"),
        "finish": (round != last, f"round {round} is not the last one"),
    }
    is_wrong, why = wrong[request.operation]
    if is_wrong:
        raise RefusalError(why)
    try:
        check_broadcast(request.shared, _like(request.operation, algorithm, first), algorithm.later)
    except ValueError as error:
        raise RefusalError(f"{request.operation}: {error}") from error


def _like(operation: str, algorithm: Algorithm, first: Adapter) -> Adapter:
    """What is sent with a question before the first round."""
    if operation == "prepare":
        return {}
    state = algorithm.init(first)
    return algorithm.deployed(state) if operation == "evaluate" else algorithm.broadcast(state)


def longest_request(algorithms: list[Algorithm], first: Adapter) -> int:
    """The bytes that a server's question of any of these algorithms has at most."""
    return min(MOST, HEADERS + max(_longest(each, first) for each in algorithms))


def _longest(algorithm: Algorithm, first: Adapter) -> int:
    likes = [_like(operation, algorithm, first) for operation in ("fit", "evaluate")]
    grown = sum(_of_full_rank(plain_factors(first)) for _ in algorithm.later)
    names = QUESTION_HEADER * (max(map(len, likes)) + len(algorithm.later) * len(first))
    return max(map(size_in_bytes, likes)) + grown + names


def _of_full_rank(like: Adapter) -> int:
    """Bytes of the largest adapter for the layers of `like`."""
    total = 0
    for path in layer_paths(like):
        a, b = like[path + A_SUFFIX], like[path + B_SUFFIX]
        rank = min(a.shape[1], b.shape[0])
        total += rank * (a.shape[1] + b.shape[0]) * a.element_size()
    return total
