"""The tables of algorithms and transforms: what a recipe can choose from.

A new algorithm is one file in this folder and one row here (CONTRIBUTING.md has an example); how
the choices are put together is `fedsdr.recipe.build`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from fedsdr.algorithms.aggregation.fedex import fedex_lora
from fedsdr.algorithms.aggregation.fedper import FedPer, fedper
from fedsdr.algorithms.aggregation.fedrot import fedrot_lora
from fedsdr.algorithms.aggregation.fedsa import fedsa_lora
from fedsdr.algorithms.aggregation.ffa import ffa_lora
from fedsdr.algorithms.aggregation.flexlora import flexlora
from fedsdr.algorithms.aggregation.flora import flora
from fedsdr.algorithms.aggregation.rolora import rolora
from fedsdr.algorithms.compression import TopK, fp16, int8, topk
from fedsdr.algorithms.contract import Algorithm, NoOptions, Options
from fedsdr.algorithms.distilled import distilled_targets, mixed_targets
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.feddyn import FedDyn, feddyn
from fedsdr.algorithms.fedopt import (
    Adaptive,
    FedAdagrad,
    FedAvgM,
    fedadagrad,
    fedadam,
    fedavgm,
    fedyogi,
)
from fedsdr.algorithms.fedprox import FedProx, fedprox
from fedsdr.algorithms.local import local
from fedsdr.algorithms.personalisation.ditto import Ditto, ditto
from fedsdr.algorithms.personalisation.feddpa import feddpa
from fedsdr.algorithms.privacy import central_privacy, local_noise
from fedsdr.algorithms.robust.clipping import Clipping, with_clipping
from fedsdr.algorithms.robust.krum import Krum, krum
from fedsdr.algorithms.robust.median import median
from fedsdr.algorithms.robust.trimmed_mean import TrimmedMean, trimmed_mean
from fedsdr.algorithms.scaffold import Scaffold, scaffold
from fedsdr.algorithms.soft import OnPolicy, Soft, with_loss
from fedsdr.algorithms.two_shared_streams import two_shared_streams
from fedsdr.algorithms.two_stream import two_stream


class AlgorithmRow(NamedTuple):
    """One choice: how it is built, its options, a line and a citation for its list, its traits.

    build: of an algorithm, from (Setup, options); of a transform, from (Algorithm, options) and
        what else its table says.
    traits: properties that decide which choices combine (`fedsdr.recipe.build`).
    least: how many clients a round must have, given the options.
    """

    build: Callable[..., Algorithm]
    line: str
    citation: str
    options: type[Options] = NoOptions
    traits: frozenset[str] = frozenset()
    least: Callable[[Any], int] = lambda options: 1


def _traits(*names: str) -> frozenset[str]:
    return frozenset(names)


ALGORITHMS: Final[Mapping[str, AlgorithmRow]] = {
    "fedavg": AlgorithmRow(
        lambda setup, options: fedavg(setup),
        "weighted mean of the clients' changes",
        "McMahan et al. 2017, arXiv 1602.05629",
    ),
    "fedprox": AlgorithmRow(
        fedprox,
        "clients are pulled towards the global adapter",
        "Li et al. 2020, arXiv 1812.06127",
        FedProx,
    ),
    "scaffold": AlgorithmRow(
        scaffold,
        "control variates correct clients' gradients",
        "Karimireddy et al. 2020, arXiv 1910.06378",
        Scaffold,
        _traits("server memory", "client memory"),
    ),
    "feddyn": AlgorithmRow(
        feddyn,
        "clients' objectives are bent towards the common optimum",
        "Acar et al. 2021, arXiv 2111.04263",
        FedDyn,
        _traits("server memory", "client memory"),
    ),
    "fedavgm": AlgorithmRow(
        fedavgm,
        "server momentum",
        "Hsu et al. 2019, arXiv 1909.06335",
        FedAvgM,
        _traits("server memory"),
    ),
    "fedadagrad": AlgorithmRow(
        fedadagrad,
        "server Adagrad on the mean change",
        "Reddi et al. 2021, arXiv 2003.00295",
        FedAdagrad,
        _traits("server memory"),
    ),
    "fedadam": AlgorithmRow(
        fedadam,
        "server Adam on the mean change",
        "Reddi et al. 2021, arXiv 2003.00295",
        Adaptive,
        _traits("server memory"),
    ),
    "fedyogi": AlgorithmRow(
        fedyogi,
        "server Yogi on the mean change",
        "Reddi et al. 2021, arXiv 2003.00295",
        Adaptive,
        _traits("server memory"),
    ),
    "local": AlgorithmRow(
        lambda setup, options: local(setup),
        "no federation: each client trains alone",
        "baseline",
        traits=_traits("sends nothing"),
    ),
}

# Those with the trait "ranks" are also given the smaller ranks, if clients have some.
LORA_AGGREGATION: Final[Mapping[str, AlgorithmRow]] = {
    "factors": AlgorithmRow(
        lambda inner, options: inner,
        "mean of the factors A and B (FedIT)",
        "Zhang et al. 2024, arXiv 2305.05644",
        traits=_traits("linear", "global"),
    ),
    "ffa": AlgorithmRow(
        ffa_lora,
        "A frozen, B trained and averaged: exact, half the upload",
        "Sun et al. 2024, arXiv 2403.12313",
        traits=_traits("linear", "global"),
    ),
    "rolora": AlgorithmRow(
        rolora,
        "B and A take turns: exact, half the upload",
        "Chen et al. 2024, arXiv 2409.02346",
        traits=_traits("linear", "global"),
    ),
    "fedsa": AlgorithmRow(
        fedsa_lora,
        "A averaged, B stays with its client",
        "Guo et al. 2025, arXiv 2410.01463",
        traits=_traits("linear"),
    ),
    "fedper": AlgorithmRow(
        fedper,
        "lower blocks averaged, upper ones stay with their client",
        "Arivazhagan et al. 2019, arXiv 1912.00818",
        FedPer,
        _traits("linear"),
    ),
    "flexlora": AlgorithmRow(
        flexlora,
        "mean of the products, truncated by SVD; clients of several ranks",
        "Bai et al. 2024, arXiv 2402.11505",
        traits=_traits("global", "ranks"),
    ),
    "flora": AlgorithmRow(
        flora,
        "adapters stacked and folded into the base, exactly; clients of several ranks",
        "Wang et al. 2024, arXiv 2409.05976",
        traits=_traits("global", "ranks", "folds", "fresh each round"),
    ),
    "fedex": AlgorithmRow(
        fedex_lora,
        "mean of the factors, what it misses folded into the base: exact",
        "Singhal et al. 2025, arXiv 2410.09432",
        traits=_traits("global", "folds"),
    ),
    "fedrot": AlgorithmRow(
        fedrot_lora,
        "factors turned towards the global ones, then averaged",
        "arXiv 2602.23638",
        traits=_traits("linear", "global"),
    ),
}

# build(inner, smoothing)
TARGETS: Final[Mapping[str, AlgorithmRow]] = {
    "raw": AlgorithmRow(
        lambda inner, smoothing: inner, "the clients' responses as they are", "baseline"
    ),
    "distilled": AlgorithmRow(
        lambda inner, smoothing: distilled_targets(inner),
        "FedSD: the clients' responses, rewritten by the base model",
        "Ren et al. 2026, arXiv 2605.18028",
    ),
    "mixed": AlgorithmRow(
        lambda inner, smoothing: mixed_targets(inner),
        "both, the responses and their rewrites, in one stream",
        "baseline",
    ),
    "two_stream": AlgorithmRow(
        two_stream,
        "FedSDR: R, which is shared, and a private S; `method` says what each learns",
        "Ren et al. 2026, arXiv 2605.18028",
    ),
    "two_shared_streams": AlgorithmRow(
        two_shared_streams,
        "FedSDR with S uploaded too: an ablation, no longer private",
        "ablation of arXiv 2605.18028",
    ),
}

# build(inner, options)
STAGE_LOSSES: Final[Mapping[str, AlgorithmRow]] = {
    "cross_entropy": AlgorithmRow(
        lambda inner, options: inner, "the words of the responses", "baseline"
    ),
    "soft": AlgorithmRow(
        lambda inner, options: with_loss(inner, options.loss),
        "at these words, the distributions of the base model that is shown the reference",
        "Hinton et al. 2015, arXiv 1503.02531",
        Soft,
    ),
    "on_policy": AlgorithmRow(
        lambda inner, options: with_loss(inner, options.loss),
        "the same at words that the client's model samples",
        "Shenfeld et al. 2026, arXiv 2601.19897",
        OnPolicy,
    ),
}

# build(inner, options, schedule, targets, loss)
PERSONALISATION: Final[Mapping[str, AlgorithmRow]] = {
    "none": AlgorithmRow(
        lambda inner, options, schedule, targets, loss: inner, "no personal model", "baseline"
    ),
    "ditto": AlgorithmRow(
        ditto,
        "each client trains its own adapter, pulled towards the global one",
        "Li et al. 2021, arXiv 2012.04221",
        Ditto,
    ),
    "feddpa": AlgorithmRow(
        feddpa,
        "each client trains a second adapter on top of the global one",
        "Yang et al. 2024, arXiv 2403.19211",
    ),
}

ROBUST: Final[Mapping[str, AlgorithmRow]] = {
    "none": AlgorithmRow(
        lambda inner, options: inner, "every update counts as it comes", "baseline"
    ),
    "clipping": AlgorithmRow(
        with_clipping, "updates clipped to a norm", "Sun et al. 2019, arXiv 1911.07963", Clipping
    ),
    "median": AlgorithmRow(
        median, "coordinate-wise median of the updates", "Yin et al. 2018, arXiv 1803.01498"
    ),
    "trimmed_mean": AlgorithmRow(
        trimmed_mean,
        "coordinate-wise mean without the extremes",
        "Yin et al. 2018, arXiv 1803.01498",
        TrimmedMean,
    ),
    "krum": AlgorithmRow(
        krum,
        "the update (or updates) with the nearest neighbours",
        "Blanchard et al. 2017, arXiv 1703.02757",
        Krum,
        least=lambda options: max(options.malicious + 3, options.keep),
    ),
}

COMPRESSION: Final[Mapping[str, AlgorithmRow]] = {
    "none": AlgorithmRow(
        lambda inner, options: inner, "updates in their own precision", "baseline"
    ),
    "fp16": AlgorithmRow(fp16, "updates in half precision", "IEEE 754"),
    "int8": AlgorithmRow(
        int8,
        "updates in 8 bits, with error feedback",
        "Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847",
        traits=_traits("feedback"),
    ),
    "topk": AlgorithmRow(
        topk,
        "the largest entries of an update, with error feedback",
        "Stich et al. 2018, arXiv 1809.07599",
        TopK,
        _traits("feedback"),
    ),
}

PRIVACY: Final[Mapping[str, AlgorithmRow]] = {
    "none": AlgorithmRow(lambda inner, options: inner, "no noise", "baseline"),
    "central": AlgorithmRow(
        central_privacy,
        "updates clipped, noise on their sum",
        "McMahan et al. 2018, arXiv 1710.06963",
    ),
    "local": AlgorithmRow(
        local_noise, "updates clipped, noise on each", "Duchi et al. 2013, arXiv 1302.3203"
    ),
}

# The key of a recipe that chooses from each table.
TABLES: Final[Mapping[str, Mapping[str, AlgorithmRow]]] = {
    "federation.algorithm": ALGORITHMS,
    "federation.lora_aggregation": LORA_AGGREGATION,
    "federation.targets": TARGETS,
    "federation.loss": STAGE_LOSSES,
    "federation.personalisation": PERSONALISATION,
    "federation.robust": ROBUST,
    "federation.compression": COMPRESSION,
    "privacy.mode": PRIVACY,
}
