"""The traffic of a method, by running its algorithm on the meta device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedsdr.algorithms.contract import Algorithm, ClientState, Fitted, Round, Stage
from fedsdr.core.adapters import (
    Adapter,
    Private,
    layer_paths,
    rank_of,
    resize_rank,
    select_tensors,
    size_in_bytes,
)
from fedsdr.core.metrics import Mean
from fedsdr.recipe.choices import chosen_options
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe

Cohorts = Sequence[Sequence[str]]  # who takes part, round by round
PHASES = 2  # an algorithm's uploads repeat after so many rounds (RoLoRA's take turns)


@dataclass(frozen=True)
class Traffic:
    """Bytes: of one client in round 1, and of all clients in all rounds.

    exact: whether the downloads are exact, or the most that they can be (what exact aggregation
        folds into the base grows with the ranks of what clients send).
    """

    upload: int
    download: int
    bytes_up: int
    bytes_down: int
    exact: bool


def method_traffic(method: Method, first: Adapter, cohorts: Cohorts) -> Traffic:
    """Of a method with adapters like `first`, tensors on the meta device.

    S is no part of it: two streams send what a single LoRA sends.
    """
    recipe, algorithm = method.recipe, method.algorithm
    place = "cpu" if recipe.lora.ranks else "meta"  # smaller ranks are cut from values: zeros
    first = {key: torch.zeros(t.shape, dtype=t.dtype, device=place) for key, t in first.items()}
    with torch.device(place):
        state = algorithm.init(first)
        forms = [algorithm.uploads(state, Round(n + 1, 0)) for n in range(PHASES)]
        sizes: dict[int | None, list[int]] = {None: [size_in_bytes(form) for form in forms]}
        for rank in {*recipe.lora.ranks.values()}:
            sizes[rank] = [size_in_bytes(resize_rank(form, rank)) for form in forms]
        down = size_in_bytes(algorithm.broadcast(state))
    ranks: Mapping[str, int] = recipe.lora.ranks
    up = sum(
        sizes[ranks.get(client)][t % PHASES]
        for t, cohort in enumerate(cohorts)
        for client in cohort
    )
    folds = chosen_options(recipe, "federation.lora_aggregation").has("folds")
    grown = _folded(recipe, first, cohorts) if folds else [0] * len(cohorts)
    total = sum((down + more) * len(cohort) for more, cohort in zip(grown, cohorts, strict=True))
    return Traffic(sizes[None][0], down, up, total, exact=not folds)


def _folded(recipe: Recipe, first: Adapter, cohorts: Cohorts) -> list[int]:
    """The most bytes that the folded part can have in each round: ranks add up to full rank."""
    sizes, rank = [], 0
    shapes = [
        (first[p + ".lora_A.weight"], first[p + ".lora_B.weight"]) for p in layer_paths(first)
    ]
    for cohort in cohorts:
        numbers = (min(rank, a.shape[1], b.shape[0]) * (a.shape[1] + b.shape[0]) for a, b in shapes)
        sizes.append(sum(numbers) * shapes[0][0].element_size())
        rank += sum(recipe.lora.ranks.get(client, recipe.lora.rank) for client in cohort)
        rank += recipe.lora.rank  # of the mean that is taken off (FedEx)
    return sizes


def traced_stages(algorithm: Algorithm, first: Adapter) -> list[Stage]:
    """The stages that a client trains in a round, by running its half on layers of one channel."""
    small = {
        key: torch.ones(1, t.shape[1]) if key.endswith("B.weight") else torch.ones(t.shape[0], 1)
        for key, t in first.items()
    }
    asked: list[Stage] = []

    def fit(stage: Stage) -> Fitted:
        asked.append(stage)
        sent = stage.shared or {}
        whole = resize_rank(small, rank_of(sent)) if sent else small
        shared = select_tensors(whole, lambda key: key in sent)
        own = Private(select_tensors(whole, lambda key: key not in sent))
        still = Private(whole)
        return Fitted(1, Mean(0.0, 1.0), still, still, shared, own, dict(shared))

    shared = algorithm.broadcast(algorithm.init(small))
    algorithm.client(shared, ClientState(), fit, Round(1, 0))
    return asked
