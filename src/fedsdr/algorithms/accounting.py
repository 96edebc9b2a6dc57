"""What a run's noise is worth: epsilon of (epsilon, delta)-differential privacy of a client.

T Gaussian mechanisms in a row, accounted for by their privacy loss distribution (Koskela et al.
2020, arXiv 1906.03049; the library dp-accounting).
"""

import math


def epsilon(noise_multiplier: float, releases: int, delta: float, local: bool) -> float:
    """epsilon at `delta` of `fedsdr.algorithms.privacy` with z = `noise_multiplier`.

    releases: the number of rounds in which the client that took part most often did. No
        amplification by sampling is claimed: who takes part is a public function of the seed.
    local: of `local_noise`, for which any two changes must look alike: they are up to 2 C apart,
        so that noise counts half. Of `central`, a change must look like none at all, C apart
        (zero-out adjacency: that a client takes part, and so the number of those, is public).

    0 where nothing was released, inf without noise, and where there is next to none (epsilon above
    5000) an upper bound within 2 %. Raises `ValueError` for a negative
    `noise_multiplier` or `releases`, or a `delta` outside of (0, 1).
    """
    if not (noise_multiplier >= 0 and releases >= 0 and 0 < delta < 1):
        raise ValueError(
            f"noise_multiplier {noise_multiplier} and releases {releases} must not be negative, "
            f"and delta {delta} must be between 0 and 1"
        )
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    # All rounds together are one Gaussian mechanism; its loss has mean mu^2 / 2 and deviation mu.
    mu = math.sqrt(releases) / noise_multiplier * (2 if local else 1)
    if mu > 100:  # Next to no noise: Bun and Steinke 2016 (arXiv 1605.02065), Proposition 1.3.
        return mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    # Most of a second to import, which only private runs should pay.
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    # A grid in proportion to the loss loses less than a thousandth of epsilon, upwards.
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3 * mu)
    accountant.compose(GaussianDpEvent(math.sqrt(releases) / mu), releases)
    return float(accountant.get_epsilon(delta))
