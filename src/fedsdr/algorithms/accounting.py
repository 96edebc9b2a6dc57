"""Privacy accounting: epsilon of (epsilon, delta)-differential privacy of a client.

The composition of Gaussian mechanisms, by their privacy loss distribution (Koskela et al. 2020,
arXiv 1906.03049; the library dp-accounting).
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np


def single_epsilon(noise_multiplier: float, releases: int, delta: float, local: bool) -> float:
    """epsilon at `delta` of `fedsdr.algorithms.privacy` with z = `noise_multiplier`.

    releases: the most rounds that any client took part in. Everything else is as in
    `composed_epsilon`.
    """
    return composed_epsilon({noise_multiplier: releases}, delta, local)


def composed_epsilon(releases: Mapping[float, int], delta: float, local: bool) -> float:
    """epsilon at `delta` of all `releases` of one client's data: noise multiplier -> how many.

    No amplification by sampling is claimed: who takes part is a public function of the seed.
    local: of `local_noise`, for which any two changes must look alike: they are up to 2 C apart,
        so that noise counts half. Of `central`, a change must look like none at all, C apart
        (zero-out adjacency: that a client takes part, and so the number of those, is public).
        Where there are both, `local` holds for all of them.

    0 where nothing was released, inf without noise, and where there is next to none (epsilon above
    5000) an upper bound within 2 %. Raises `ValueError` for a negative noise multiplier or number
    of releases, or a `delta` outside of (0, 1).
    """
    if not (0 < delta < 1 and all(noise >= 0 and n >= 0 for noise, n in releases.items())):
        raise ValueError(
            f"noise multipliers and numbers of releases, {dict(releases)}, must not be negative, "
            f"and delta {delta} must be between 0 and 1"
        )
    made = sorted((noise, count) for noise, count in releases.items() if count)
    if not made:
        return 0.0
    if made[0][0] == 0:
        return math.inf
    return _gaussian(tuple(made), delta, 2 if local else 1)


@lru_cache(maxsize=256)  # a ledger repeats the same composition many times
def _gaussian(made: tuple[tuple[float, int], ...], delta: float, apart: int) -> float:
    """epsilon of Gaussian mechanisms: (noise multiplier, how many), values `apart` x C apart."""
    # Together they are one Gaussian mechanism; its loss has mean mu^2 / 2 and deviation mu.
    mu = math.sqrt(sum(count / noise**2 for noise, count in made)) * apart
    if mu > 100:  # Next to no noise: Bun and Steinke 2016 (arXiv 1605.02065), Proposition 1.3.
        return mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    # Most of a second to import, which only private runs should pay.
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    # A grid in proportion to the loss loses less than a thousandth of epsilon, upwards.
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3 * mu)
    for noise, count in made:
        accountant.compose(GaussianDpEvent(noise / apart), count)
    with np.errstate(over="ignore"):  # its search includes losses without mass
        return float(accountant.get_epsilon(delta))
