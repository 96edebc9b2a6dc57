"""What was aimed at, and what the results say of it: the first table of docs/performance.md.

A goal is a sentence with its limit and the figures that it is of; nothing here is a measurement.
"""

from typing import Any, NamedTuple

from measure import Row, load, three

# Tables of a commit, measured by a script that has been mended since, and what was wrong.
AGAIN = {
    ("training", "float32"): ("a6aa77d+", "a turn was one batch"),
    ("training", "bfloat16"): ("a6aa77d+", "a turn was one batch"),
    ("training", "default"): ("a6aa77d+", "SFTTrainer ran without autocast and checkpointing"),
    ("aggregation", "methods"): ("a6aa77d+", "the parent process may have set the peaks"),
}
FLOATS = ("float32", "bfloat16")


class Figure(NamedTuple):
    """A column of the row that has these values."""

    name: str
    table: str
    column: str
    row: dict[str, Any]

    def value(self) -> float | None:
        """None where it has not been measured."""
        for row in _result(self.name).get("tables", {}).get(self.table, ()):
            if self.row.items() <= row.items() and self.column in row:
                return float(row[self.column])
        return None

    def outdated(self) -> bool:
        return self.value() is not None and fault(self.name, self.table) is not None


def fault(name: str, table: str) -> str | None:
    """Why a table is to be measured again, if it is."""
    commit, why = AGAIN.get((name, table), (None, None))
    return why if commit == _result(name).get("machine", {}).get("fedsdr") else None


def _result(name: str) -> dict[str, Any]:
    try:
        return load(name)
    except FileNotFoundError:
        return {}


class Goal(NamedTuple):
    """least, most: of each figure. alike: the largest ratio of any two, where that is the goal."""

    words: str
    figures: tuple[Figure, ...]
    least: float = float("-inf")
    most: float = float("inf")
    alike: float = float("inf")

    def row(self) -> Row:
        """Its line in the table; figures are in the order of its words."""
        values = [figure.value() for figure in self.figures]
        again = any(figure.outdated() for figure in self.figures)
        told = ", ".join("not yet" if value is None else f"{three(value):,}" for value in values)
        return {
            "goal": self.words,
            "measured": told + (" (to be measured again)" if again else ""),
            "met": self.met(values),
        }

    def met(self, values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        good = [value for value in known if self.least <= value <= self.most]
        if not known:
            return "not measured"
        if max(known) > self.alike * min(known):
            return "no"
        if len(good) == len(values):
            return "yes"
        return "no" if not good else f"{len(good)} of {len(values)}"


def times(name: str, table: str, setting: str, contender: str, column: str = "times") -> Figure:
    return Figure(name, table, column, {"setting": setting, "contender": contender})


def step(contender: str, column: str = "times") -> tuple[Figure, ...]:
    return tuple(times("training", each, each, contender, column) for each in FLOATS)


def beside(other: str) -> tuple[Figure, ...]:
    rows = ({"setting": each, "R beside S over": other} for each in FLOATS)
    return tuple(Figure("training", "streams", "times", row) for row in rows)


OWN = "fedsdr, generator 'fedsdr'"
MODELS = ("SmolLM2-135M, float32", "SmolLM2-135M, bfloat16")

GOALS = (
    Goal("training at least 1.5 times as fast as SFTTrainer on PEFT in the same type: float32, "
         "bfloat16", step("fedsdr, R"), least=1.5),
    Goal("at least 2 times as fast as SFTTrainer's defaults: in bfloat16",
         (times("training", "default", "default", "fedsdr, R, bfloat16"),), least=2),
    Goal("at least 0.6 of the matrix products' rate in float32",
         (times("training", "float32", "float32", "fedsdr, R", "of the bound"),), least=0.6),
    Goal("at least 0.45 of it in bfloat16",
         (times("training", "bfloat16", "bfloat16", "fedsdr, R", "of the bound"),), least=0.45),
    Goal("with S beside R a step takes at most 1.15 times as long, so at least 0.87 of R's speed: "
         "float32, bfloat16", beside("fedsdr, R"), least=0.87),
    Goal("eight clients at once at least 1.3 times as fast as one after another: the lab's model, "
         "batches of 4", (times("cohort", "speed", "batch 4", "8 at once"),), least=1.3),
    Goal("rewriting at least 2 times as fast as `generate` in static batches in the data's order: "
         "float32, bfloat16", tuple(times("rewriting", "speed", each, OWN) for each in MODELS),
         least=2),
    Goal("at most 2 % of a round is neither forward pass, backward pass nor optimiser",
         (Figure("rounds", "overhead", "overhead %", {}),), most=2),
    Goal("at least 5 times the client-rounds of loops that rebuild: the lab, the lab all at once, "
         "real files",
         (times("rounds", "rates", "the lab", "fedsdr"),
          times("rounds", "rates", "the lab", "fedsdr, all at once"),
          times("rounds", "rates", "real files", "fedsdr")), least=5),
    Goal("a simulation's memory is the same within 2 % for 20 and for 200 clients: MiB",
         tuple(Figure("memory", "clients", "peak MiB", {"clients": n}) for n in (20, 200)),
         alike=1.02),
    Goal("a server's memory is the same within 2 % for 1,000 and for 10,000 updates: MiB, FedAvg",
         tuple(Figure("aggregation", "methods", f"peak_mib_after_{each}", {"method": "fedavg"})
               for each in ("a_tenth", "all")), alike=1.02),
    Goal("on a GPU at least 0.5 of the matrix products' rate in training: Llama 1B, 7B",
         tuple(times("gpu", "training", each, "fedsdr, R", "of the bound")
               for each in ("Llama-3.2-1B", "Llama-2-7B")), least=0.5),
    Goal("on a GPU eight clients at once at least 3 times as fast as one after another: Llama 1B",
         (times("gpu", "cohort", "Llama-3.2-1B", "8 at once"),), least=3),
)  # fmt: skip


def rows() -> list[Row]:
    return [goal.row() for goal in GOALS]
