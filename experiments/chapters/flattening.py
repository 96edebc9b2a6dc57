"""Manifold flattening: do rewrites bring the clients' texts, gradients and models together?"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Final

from matplotlib.axes import Axes

from experiments import plan
from experiments.chapter import Chapter, Draw, Figure, Table, format_estimate
from experiments.chapters.shared import (
    NUMBERS,
    Texts,
    estimate_cells,
    line_with_band,
    raw_texts,
    rewritten_texts,
)
from experiments.plan import Cell
from experiments.results import Results
from fedsdr.core.statistics import Estimate, paired_difference, t_interval
from fedsdr.diagnosis.divergence import (
    ClientWords,
    fewest_words,
    mean_js,
    sample_words,
    tfidf_cosine,
)
from fedsdr.diagnosis.maps import response_map
from fedsdr.diagnosis.transfer import Losses, loss_on_others, loss_on_own
from fedsdr.evaluate.verdicts import Claim, Condition

ROUNDS: Final = (*plan.STAGES, 10)
TRANSFER: Final = {"on their own records": loss_on_own, "on the others'": loss_on_others}
MAPPED: Final = 60  # responses of each client on the map


def flattening_chapter(results: Results) -> Chapter:
    cells = plan.flattening_cells()
    fedsd = cells["fedsd 10"]
    texts = {
        seed: (raw_texts(fedsd, seed), rewritten_texts(results, fedsd, seed))
        for seed in results.done(fedsd)
    }
    equal = {seed: _equally_long(*pair) for seed, pair in texts.items()}
    measured = {
        "Jensen-Shannon divergence, bits": _both(texts, mean_js),
        "the same at equal word counts": _both(equal, mean_js),
        "TF-IDF cosine": _both(texts, tfidf_cosine),
        "TF-IDF cosine at equal word counts": _both(equal, tfidf_cosine),
    }
    differences = [_difference(pair) for pair in measured.values()]
    return Chapter(
        "Manifold flattening",
        "Distances between the clients' responses before and after rewriting, each a mean over "
        "pairs of clients (longer texts alone come closer, so also at equal word counts); cosines "
        "between the clients' gradients of R on what each method learns from; and the loss "
        "of a client's own model on its own and on the others' held-out records: raw responses, "
        "whose styles those trained on rewrites have not seen.",
        [
            *text_claims(*differences),
            gradients_claim([_gradients(results, rounds) for rounds in (0, *ROUNDS)]),
            Claim(
                "Models trained on rewrites alone do better on each other's data",
                [
                    Condition(
                        "loss on the others' held-out records, in nats, rewritten - raw",
                        _transfer_difference(results, loss_on_others),
                        positive=False,
                    )
                ],
            ),
        ],
        [("Texts, gradients, transfer", _table(results, measured))],
        [_cosines(results), *_transfers(results), *_maps(texts)],
    )


def text_claims(
    js: Estimate | None,
    equal_js: Estimate | None,
    cosine: Estimate | None,
    equal_cosine: Estimate | None,
) -> list[Claim]:
    """What rewriting changes of the distances between clients' texts; equal: of equal length."""
    return [
        Claim(
            "Rewriting brings the clients' texts together (paper: JS 0.407 to 0.361, TF-IDF "
            "cosine 0.636 to 0.706)",
            [Condition("JS", js, positive=False), Condition("TF-IDF cosine", cosine)],
        ),
        Claim(
            "Rewriting brings the clients' texts together at equal word counts",
            [Condition("JS", equal_js, positive=False), Condition("TF-IDF cosine", equal_cosine)],
        ),
    ]


def gradients_claim(conditions: Sequence[Condition]) -> Claim:
    """conditions: the change of the clients' mean cosine at some rounds."""
    return Claim(
        "Rewriting turns the clients' gradients towards each other (paper: by 8 to 41 points)",
        conditions,
    )


def _equally_long(before: Texts, after: Texts) -> tuple[ClientWords, ClientWords]:
    """As many words of each client on both sides: as many as the shortest set has."""
    size = min(fewest_words(before), fewest_words(after))
    return sample_words(before, size), sample_words(after, size)


def _both(
    texts: Mapping[int, tuple[ClientWords, ClientWords]], measure: Callable[[ClientWords], float]
) -> tuple[list[float], list[float]]:
    """The measure before and after, seed by seed."""
    return [measure(a) for a, _ in texts.values()], [measure(b) for _, b in texts.values()]


def _difference(pair: tuple[list[float], list[float]]) -> Estimate | None:
    before, after = pair
    return paired_difference(after, before) if before else None


def _cosine_of(method: str, rounds: int) -> tuple[Cell, str]:
    cells = plan.flattening_cells()
    when = "gradients_last" if rounds else "gradients_first"
    return cells[f"{method} {rounds or ROUNDS[0]}"], when


def _gradients(results: Results, rounds: int) -> Condition:
    (a, when), (b, _) = (_cosine_of(method, rounds) for method in ("fedsd", "fedavg"))
    what = f"cosine of gradients after round {rounds}, rewritten - raw"
    return Condition(what, results.difference(a, b, when))


def _table(results: Results, measured: Mapping[str, tuple[list[float], list[float]]]) -> Table:
    rows = [
        [
            name,
            *(format_estimate(t_interval(side), 3) if side else "" for side in pair),
            format_estimate(_difference(pair), 3, sign=True),
        ]
        for name, pair in measured.items()
    ]
    for rounds in (0, *ROUNDS):
        (b, when), (a, _) = (_cosine_of(method, rounds) for method in ("fedsd", "fedavg"))
        rows.append([f"cosine of gradients, round {rounds}", *_sides(results, a, b, when)])
    for name, mean in TRANSFER.items():
        sides = (_transfer(results, which, mean) for which in ("local", "fedsd+local"))
        cells = (format_estimate(t_interval([*side.values()]), 3) if side else "" for side in sides)
        difference = format_estimate(_transfer_difference(results, mean), 3, sign=True)
        rows.append([f"own models' loss {name}, nats", *cells, difference])
    return Table(["", "raw", "rewritten", "difference"], rows)


def _transfer(results: Results, which: str, mean: Callable[[Losses], float]) -> dict[int, float]:
    """A mean of the matrix of losses of `_transfers`, seed by seed."""
    cell = plan.flattening_cells()[which]
    matrices = {seed: results.transfer(cell, seed) for seed in results.done(cell)}
    return {seed: mean(matrix) for seed, matrix in matrices.items() if matrix}


def _transfer_difference(results: Results, mean: Callable[[Losses], float]) -> Estimate | None:
    """On rewrites minus on raw responses."""
    raw, new = (_transfer(results, which, mean) for which in ("local", "fedsd+local"))
    both = sorted(raw.keys() & new.keys())
    return paired_difference([new[s] for s in both], [raw[s] for s in both]) if both else None


def _sides(results: Results, a: Cell, b: Cell, metric: str) -> list[str]:
    first, second = results.estimate(a, metric), results.estimate(b, metric)
    return [
        format_estimate(first, 3),
        format_estimate(second, 3),
        format_estimate(results.difference(b, a, metric), 3, sign=True),
    ]


def _cosines(results: Results) -> Figure:
    """Cosine of the clients' gradients along training."""
    found: dict[str, list[tuple[float, Estimate]]] = {}
    for method in ("fedavg", "fedsd"):
        places = [(rounds, *_cosine_of(method, rounds)) for rounds in (0, *ROUNDS)]
        found[method] = [(r, e) for r, cell, when in places if (e := results.estimate(cell, when))]

    def draw(axes: Axes) -> None:
        for method, points in found.items():
            line_with_band(axes, method, points)
        axes.set_xlabel("round")
        axes.set_title("cosine of clients' gradients", loc="left", fontsize=10)

    rows = [
        [method, f"{r:g}", *estimate_cells(e)]
        for method, points in found.items()
        for r, e in points
    ]
    data = Table(["method", "round", *NUMBERS], rows)
    return Figure(
        "gradients",
        "Mean cosine between the gradients of clients; bands are 95 % intervals.",
        [draw],
        data,
    )


def _transfers(results: Results) -> list[Figure]:
    """Held-out loss of each client's own model on each client's records, a matrix a side."""
    cells = {
        "raw": plan.flattening_cells()["local"],
        "rewritten": plan.flattening_cells()["fedsd+local"],
    }
    found = {side: _mean_matrix(results, cell) for side, cell in cells.items()}
    if not all(found.values()):
        return []
    most = max(
        loss for matrix in found.values() for row in matrix.values() for loss in row.values()
    )

    def panel(side: str) -> Draw:
        def draw(axes: Axes) -> None:
            matrix = found[side]
            axes.grid(visible=False)
            axes.imshow([[*row.values()] for row in matrix.values()], vmin=0, vmax=most)
            axes.set_xticks(range(len(matrix)), matrix, fontsize=7)
            axes.set_yticks(range(len(matrix)), matrix, fontsize=7)
            for y, row in enumerate(matrix.values()):
                for x, loss in enumerate(row.values()):
                    colour = "black" if loss > most / 2 else "white"
                    axes.text(x, y, f"{loss:.1f}", ha="center", va="center", color=colour)
            axes.set_xlabel("judged on the raw responses of")
            axes.set_title(f"trained alone on {side} responses of", loc="left", fontsize=10)

        return draw

    rows = [
        [side, trained, judged, f"{loss:.4g}"]
        for side, matrix in found.items()
        for trained, row in matrix.items()
        for judged, loss in row.items()
    ]
    caption = "Loss of each client's own model on each client's held-out records, in nats a token."
    data = Table(["side", "trained_on", "judged_on", "loss"], rows)
    return [Figure("transfer", caption, [panel("raw"), panel("rewritten")], data)]


def _mean_matrix(results: Results, cell: Cell) -> dict[str, dict[str, float]]:
    """Means over seeds."""
    matrices = [m for seed in results.done(cell) if (m := results.transfer(cell, seed))]
    return {
        trained: {judged: fmean(m[trained][judged] for m in matrices) for judged in row}
        for trained, row in (matrices[0] if matrices else {}).items()
    }


def _maps(texts: Mapping[int, tuple[Texts, Texts]]) -> list[Figure]:
    """Where the first seed's responses lie, before and after; one map for both."""
    if not texts:
        return []
    before, after = next(iter(texts.values()))
    sides = {"raw": before, "rewritten": after}
    labelled = [(s, c, t) for s, each in sides.items() for c in each for t in each[c][:MAPPED]]
    points = response_map([text for *_, text in labelled], "tsne", 0)
    rows = [
        [s, c, f"{x:.4g}", f"{y:.4g}"] for (s, c, _), (x, y) in zip(labelled, points, strict=True)
    ]

    def panel(side: str) -> Draw:
        def draw(axes: Axes) -> None:
            for client in before:
                mine = [(float(x), float(y)) for s, c, x, y in rows if (s, c) == (side, client)]
                xs, ys = zip(*mine, strict=True)
                axes.scatter(xs, ys, s=8, label=client)
            axes.set_title(side, loc="left", fontsize=10)

        return draw

    caption = "Responses of one seed's clients on one map (t-SNE of TF-IDF), before and after."
    data = Table(["side", "client", "x", "y"], rows)
    return [Figure("map", caption, [panel("raw"), panel("rewritten")], data)]
