"""FLoRA and FedEx-LoRA: exact for several ranks, and what is folded into the base."""

import math

import numpy as np
import pytest
import torch

from fedsdr.algorithms.aggregation.error import with_aggregation_error
from fedsdr.algorithms.aggregation.flora import flora
from fedsdr.algorithms.contract import (
    Round,
)
from fedsdr.core import adapters
from fedsdr.core.adapters import FOLDED, unwrap_private
from support.aggregated_rounds import (
    ONLY,
    PATHS,
    RANKS,
    close,
    formed,
    ideal,
    mean,
    rounds,
    several,
)
from support.toy_clients import RECORDS, SHAPES, random_adapter
from support.toy_rounds import build, furthest, same_bits


def test_flora_is_exact_for_several_ranks():
    algorithm = with_aggregation_error(several(flora))
    for seen in rounds(algorithm, RANKS):
        close(formed(algorithm.deployed(seen.after)), ideal(seen))
        assert seen.after.metrics["aggregation/error"].value < 1e-10
        for client, stage in seen.stages.items():
            plain = adapters.plain_factors(stage.shared or {})
            wanted = adapters.resize_rank(seen.before.adapter, RANKS.get(client, 2))
            assert same_bits(plain, wanted)


def test_flora_starts_each_round_with_another_adapter_that_adds_nothing():
    seen = rounds(build("flora"))
    again = rounds(build("flora"))
    for each in seen:
        assert not any(each.after.adapter[key].any() for key in ONLY["B"])
        for key in ONLY["A"]:
            bound = 1 / math.sqrt(SHAPES[key][1])
            assert 0 < float(each.after.adapter[key].abs().max()) <= bound
    starts = [each.after.adapter for each in seen]
    for i, a in enumerate(starts):
        assert same_bits(a, again[i].after.adapter)
        assert not any(torch.equal(a[key], b[key]) for b in starts[:i] for key in ONLY["A"])


def test_a_round_of_flora_without_clients_is_refused():
    algorithm = build("flora")
    state = algorithm.init(random_adapter("first"))
    with pytest.raises(ValueError, match="more than 0"):
        algorithm.finish(state, algorithm.start(state, Round(1, 0)), Round(1, 0))


def test_fedex_folds_exactly_what_plain_averaging_misses():
    plain = build("fedavg")
    for seen in rounds(build("fedex")):
        fold = plain.start(seen.before, Round(seen.number, 0))
        for update in seen.updates.values():
            fold = plain.add(fold, update)
        averaged = plain.finish(seen.before, fold, Round(seen.number, 0))
        assert furthest(seen.after.adapter, averaged.adapter) < 1e-14
        trained = mean(
            [(formed(unwrap_private(f.after)), RECORDS[c]) for c, f in seen.fits.items()]
        )
        missed = {p: trained[p] - weight for p, weight in formed(averaged.adapter).items()}
        before, after = seen.before.memory.get(FOLDED), formed(seen.after.memory[FOLDED])
        for path in PATHS:
            grown = after[path] - (formed(before)[path] if before else 0)
            np.testing.assert_allclose(grown, missed[path], rtol=0, atol=1e-10)
