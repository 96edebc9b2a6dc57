"""FedSD: any algorithm, with D_dist in place of D_raw as the supervised target.

arXiv 2605.18028, Sec. method, FedSD step 2. The rewriting itself is `fedsdr.distill`.
"""

from dataclasses import replace

from fedsdr.adapters import Adapter
from fedsdr.algorithms.contract import Algorithm, ClientState, Fit, Fitted, Round, Stage, Update


def distilled(inner: Algorithm) -> Algorithm:
    """`inner`, learning from its clients' rewritten responses."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        def fit_rewrites(stage: Stage) -> Fitted:
            return fit(replace(stage, targets="distilled"))

        return inner.client(shared, state, fit_rewrites, round)

    return inner._replace(client=client)
