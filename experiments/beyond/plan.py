"""The cells of `fedsdr2`: its rivals, itself with a part changed, and the seeds of either half."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from experiments.plan import MAIN, Cell, Cells, Changes
from experiments.real.plan import ENGLISH_FILE, OWN_MODELS
from experiments.runner import Group

CHOSEN: Final = "fedsdr2"
# The English lab's five rounds are few: with momentum the server goes further in them.
CHOSEN_IN_ENGLISH: Final = "fedsdr2+fedavgm"
UNREHEARSED: Final = "general_unrehearsed"
# What was to be reached on the synthetic lab, without gold answers. The lab judges clients' own
# models on general questions none of which may be rehearsed.
GOALS: Final = (
    ("client_facts", 95.0, True),
    (UNREHEARSED, 95.0, True),
    ("hallucination", 4.0, False),
    ("personal_client_facts", 98.0, True),
    ("personal_general", 90.0, True),
)
GOLD: Final = "fedsd_verified"  # knows the gold answers
CONTRAST: Final = "FedSD, contrastive"
ABLATED: Final = 3  # seeds
# Short texts are enough where questions and answers are: a third of the time of the defaults.
ENGLISH_CHANGES: Final[Changes] = {
    "rehearsal.share": 0.25,
    "rehearsal.count": 96,
    "rehearsal.prompt_tokens": 48,
    "rehearsal.answer_tokens": 48,
    **OWN_MODELS,
}


class World(NamedTuple):
    """A lab: its methods, what is measured on the first seeds, and what is confirmed on others.

    chosen: of the methods, the one that the others are compared with. ablations, settings: on the
    first three seeds alone; the settings are other worlds or rounds, each with its methods. facts,
    kept, own_kept: the metrics that count, of global models and of clients' own; of general
    knowledge only what no run may rehearse. goals: (metric, bound, whether it is to be above).
    """

    name: str
    title: str
    chosen: str
    methods: Cells
    ablations: Cells
    settings: Mapping[str, Cells]
    development: Sequence[int]
    confirmation: Sequence[int]
    facts: str
    kept: str
    own_kept: str
    goals: Sequence[tuple[str, float, bool]] = ()

    @property
    def cells(self) -> Sequence[Cell]:
        """Each once."""
        several = [self.methods, self.ablations, *self.settings.values()]
        return [*{cell.key: cell for cells in several for cell in cells.values()}.values()]

    @property
    def seeds(self) -> Sequence[int]:
        return [*self.development, *self.confirmation]


def lab_methods() -> Cells:
    return {
        "fedavg": Cell("fedavg"),
        "fedsd": Cell("fedsd"),
        "fedsdr": Cell("fedsdr"),
        CONTRAST: Cell("fedsd", {"distill.contrast": 1.0}),
        CHOSEN: Cell(CHOSEN),
        GOLD: Cell(GOLD),
    }


def lab_ablations() -> Cells:
    """`fedsdr2` with one of its choices taken back, or another rank or aggregation."""
    changed: dict[str, Changes] = {
        "no rehearsal": {"rehearsal.share": 0.0},
        "no contrast": {"distill.contrast": 0.0},
        "R alone in half of the batches": {"local.rectify_alone": 0.5},
        "S reset each round": {"local.smoothing_state": "reset"},
        "S at R's rate": {"local.smooth_lr": 3e-3},
        "R of rank 4": {"lora.rank": 4, "lora.alpha": 8.0, "lora.smoothing_rank": 16},
        "S of rank 4": {"lora.smoothing_rank": 4},
        "FedEx-LoRA": {"federation.lora_aggregation": "fedex"},
        "FlexLoRA": {"federation.lora_aggregation": "flexlora"},
    }
    return {name: Cell(CHOSEN, changes) for name, changes in changed.items()}


def lab_settings() -> Mapping[str, Cells]:
    """Other worlds: how often memory is stronger than a reference, how many clients there are, and
    who of them takes part. Two of five are late (or never come): what newcomers get."""
    worlds: dict[str, Changes] = {
        "stubbornness 0": {"lab.stubbornness": 0.0},
        "stubbornness 1": {"lab.stubbornness": 1.0},
        "2 clients": {"lab.clients": 2},
        "20 clients": {"lab.clients": 20},
        "5 of 20 clients a round": {"lab.clients": 20, "federation.participation": 0.25},
        "2 of 5 join after round 5": {"federation.late": 0.4, "federation.late_round": 5},
        "2 of 5 never take part": {"federation.late": 0.4, "federation.late_round": 10},
    }
    return {
        setting: {name: Cell(name, world=world) for name in (*MAIN, CHOSEN)}
        for setting, world in worlds.items()
    }


def english_methods() -> Cells:
    changed: dict[str, Changes] = {
        "fedavg": {},
        "fedsd": {},
        "fedsdr": OWN_MODELS,
        "fedavgm": {},
        "fedsd+fedavgm": {},
        CHOSEN_IN_ENGLISH: {**ENGLISH_CHANGES, "local.smooth_lr": 3e-3},
    }
    return {name: Cell(name, changes, base=ENGLISH_FILE) for name, changes in changed.items()}


def english_ablations() -> Cells:
    return {"FedAvg at the server": Cell(CHOSEN, ENGLISH_CHANGES, base=ENGLISH_FILE)}


LAB: Final = World(
    "lab", "the synthetic lab", CHOSEN, lab_methods(), lab_ablations(), lab_settings(),
    range(5), range(5, 10), "client_facts", UNREHEARSED, "personal_general", GOALS,
)  # fmt: skip
ENGLISH: Final = World(
    "english", "the English lab, SmolLM2-135M-Instruct", CHOSEN_IN_ENGLISH, english_methods(),
    english_ablations(), {}, [0], [1, 2, 3],
    "client_facts", "general_kept", "personal_general_kept",
)  # fmt: skip
WORLDS: Final[Mapping[str, World]] = {world.name: world for world in (LAB, ENGLISH)}


def seed_groups(world: World, development: bool) -> list[Group]:
    """What is to be run of a half: the methods, seed by seed, then what is changed of them."""
    seeds = world.development if development else world.confirmation
    groups = [(seed, [*world.methods.values()]) for seed in seeds]
    changed = [cells for cells in (world.ablations, *world.settings.values()) if cells]
    varied = [(seed, [*cells.values()]) for cells in changed for seed in seeds[:ABLATED]]
    return [*groups, *(varied if development else [])]
