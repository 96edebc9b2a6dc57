"""Who holds what, how many there are, and who comes when."""

from fedsdr.evidence import plan
from fedsdr.evidence.chapter import Chapter, Claim, Condition
from fedsdr.evidence.chapters.shared import GLOBAL, PERSONAL, overview, sweep
from fedsdr.evidence.plan import ALPHAS, CLIENTS, MAIN, Cell
from fedsdr.evidence.results import Results


def heterogeneity(results: Results) -> Chapter:
    cells = plan.heterogeneity()
    mixed = {m: [cells[f"{m} alpha {alpha:g}"] for alpha in ALPHAS] for m in MAIN}
    few, *more = CLIENTS
    counted = {
        m: [cells[f"{m} clients {few}"], Cell(m), *(cells[f"{m} clients {k}"] for k in more)]
        for m in MAIN
    }
    kept = [
        Condition(f"general, fedsd - fedavg, alpha {alpha:g}", results.difference(a, b, "general"))
        for alpha, a, b in zip(ALPHAS, mixed["fedsd"], mixed["fedavg"], strict=True)
    ]
    return Chapter(
        "Heterogeneity and scale",
        "Facts dealt to five clients by Dirichlet(alpha), from almost exclusive to uniform (styles "
        "stay the clients' own); 2 to 20 clients; two of ten in a round; two of five clients that "
        "join after half of the rounds.",
        [Claim("FedSD keeps more general knowledge than FedAvg at any heterogeneity", kept)],
        [("All cells", overview(results, cells, GLOBAL | PERSONAL))],
        [
            sweep(results, "heterogeneity", "alpha", ALPHAS, mixed, log=True),
            sweep(results, "clients", "clients", (few, 5, *more), counted, log=True),
        ],
    )
