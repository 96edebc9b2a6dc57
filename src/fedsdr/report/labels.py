"""Labels of metrics, methods and reasons, with a fallback for new names."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

PERSONAL_LABELS = "personal_"


@dataclass(frozen=True)
class Metric:
    """better: the direction in which a method improves; "" where neither is better in itself."""

    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    words: str
    digits: int = 1


@dataclass(frozen=True)
class MethodLabel:
    """short: for the ends of lines in figures."""

    label: str
    short: str
    words: str = ""


METRIC_LABELS: dict[str, Metric] = {
    "client_facts": Metric(
        "Facts learnt",
        "%",
        "higher",
        "Share of the clients' facts that are answered correctly, asked in words never trained on.",
    ),
    "changed_facts": Metric(
        "Changed facts",
        "%",
        "higher",
        "The same for facts whose truth differs from what the base model believed.",
    ),
    "general": Metric(
        "Knowledge kept",
        "%",
        "higher",
        "Share of general knowledge, which no client trains on, still answered correctly.",
    ),
    "hallucination": Metric(
        "Hallucination",
        "%",
        "lower",
        "Share of answers about client facts that are well formed but false.",
    ),
    "length": Metric(
        "Answer length",
        "words",
        "",
        "Mean length of an answer; the clients' own answers are short, the base model's long.",
    ),
    "base_style": Metric(
        "Base style",
        "%",
        "",
        "Share of answers in the base model's own style of writing.",
    ),
    "epsilon": Metric(
        "Privacy loss",
        "epsilon",
        "lower",
        "What the noise of this method alone guarantees to every client, at the delta of the "
        "recipe (differential privacy), as long as the seed of the noise is secret. Methods of one "
        "run, and seeds on the same data, add up: the run as a whole is stated at the top.",
        2,
    ),
    "loss": Metric(
        "Held-out loss",
        "nats per token",
        "lower",
        "Mean loss over all response tokens of the clients' held-out records.",
        3,
    ),
}

BENCHMARK_LABELS: dict[str, str] = {
    "mmlu": "MMLU",
    "bbh": "BBH",
    "drop": "DROP",
    "crass": "CRASS",
    "gsm8k": "GSM8K",
    "truthfulqa": "TruthfulQA",
}
METRIC_LABELS |= {
    name: Metric(label, "%", "higher", f"Score on {label}, a public benchmark.")
    for name, label in BENCHMARK_LABELS.items()
}

METHOD_LABELS: dict[str, MethodLabel] = {
    "base": MethodLabel("Base model", "base", "The model before any training."),
    "fedavg": MethodLabel(
        "FedAvg on raw data", "FedAvg", "Averages adapters trained on raw responses."
    ),
    "fedsd": MethodLabel(
        "FedSD (FedAvg on rewrites)",
        "FedSD",
        "Clients first rewrite their responses with the base model, then train on the rewrites.",
    ),
    "fedsd_verified": MethodLabel(
        "FedSD, verified rewrites",
        "FedSD verified",
        "FedSD that keeps only rewrites that agree with the record's known answer.",
    ),
    "fedsdr": MethodLabel(
        "FedSDR",
        "FedSDR",
        "Two streams: S (private) learns the rewrites, R (shared) learns the raw responses.",
    ),
    "local": MethodLabel("Local only", "local", "Each client trains alone; nothing is shared."),
    "central": MethodLabel(
        "Centralised",
        "central",
        "One training on all clients' data together, as if it were pooled.",
    ),
}

# The parts of which other methods' names are put together with plus signs.
PARTS: dict[str, str] = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "fedavgm": "FedAvgM",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "local": "local only",
    "ffa": "FFA-LoRA",
    "rolora": "RoLoRA",
    "fedsa": "FedSA-LoRA",
    "fedper": "FedPer",
    "flexlora": "FlexLoRA",
    "flora": "FLoRA",
    "fedex": "FedEx-LoRA",
    "fedrot": "FedRot-LoRA",
    "ditto": "Ditto",
    "feddpa": "FedDPA",
    "clipping": "clipping",
    "median": "median",
    "trimmed_mean": "trimmed mean",
    "krum": "Krum",
    "fp16": "fp16",
    "int8": "int8",
    "topk": "top-k",
    "fedsd": "FedSD",
    "fedsd_verified": "FedSD verified",
    "fedsdr": "FedSDR",
    "fedsdr_shared": "FedSDR, S shared",
    "mixed": "raw + rewrites",
    "central": "centralised",
}

LOSSES: dict[str, str] = {
    "loss/rectify": "Training loss of R, the shared stream",
    "loss/smooth": "Training loss of S, the private stream",
    "loss/consolidate": "Divergence of R alone from R with S",
    "loss/personal": "Training loss of the personal adapters",
}

REASONS: dict[str, str] = {
    "empty": "empty",
    "truncated": "cut off",
    "repetition": "repeats itself",
    "meta_talk": "talks about the reference",
    "too_long": "too long for the context",
    "unsupported": "wording without support in prompt or raw response",
    "facts_lost": "numbers or rare words lost",
    "not_entailed": "not entailed",
    "not_checked": "too long to check",
    "doubted": "doubted by the simulated check",
}

MEASURES: dict[str, str] = {
    "supported": "lexical support: its words found in prompt or raw response",
    "kept": "lexical support: numbers and rare words kept",
    "rewrite_entails_raw": "rewrite entails raw response",
    "raw_entails_rewrite": "raw response entails rewrite",
}

VERDICTS: dict[str, str] = {"holds": "Holds", "fails": "Does not hold", "open": "Open"}


def metric_label(name: str) -> Metric:
    """The metric's label; `personal_NAME` and `NAME/CLIENT` derive theirs from NAME's."""
    base, slash, client = name.partition("/")
    plain = base.removeprefix(PERSONAL_LABELS)
    found = METRIC_LABELS.get(plain) or Metric(readable_name(plain), "", "", "", 3)
    if plain != base:
        found = replace(found, words=f"{found.words} Each client's own model, own data.".strip())
    whose = client if plain == base else f"{client}, own model"
    return replace(found, label=f"{found.label}: {whose}") if slash else found


def is_personal(name: str) -> bool:
    return name.startswith(PERSONAL_LABELS)


def method_label(name: str) -> MethodLabel:
    """A name of its own, or put together from parts."""
    parts = [PARTS.get(part, part) for part in name.split("+")]
    label = " + ".join(parts) if len(parts) > 1 or name in PARTS else readable_name(name)
    return METHOD_LABELS.get(name) or MethodLabel(label, label)


def ordered_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Known names in the table's order, then the others by name. A client's own model counts as
    its metric; clients of a metric follow it by name."""
    rank = {name: index for index, name in enumerate(known)}

    def place(name: str) -> tuple[int, str]:
        plain = name if name in rank else name.partition("/")[0].removeprefix(PERSONAL_LABELS)
        return rank.get(plain, len(rank)), name

    return sorted(names, key=place)


def loss_label(name: str) -> str:
    return LOSSES.get(name) or readable_name(name)


def reason_label(name: str) -> str:
    return REASONS.get(name) or readable_name(name).lower()


def measure_label(name: str) -> str:
    return MEASURES.get(name) or readable_name(name).lower()


def readable_name(name: str) -> str:
    text = name.replace("_", " ").replace("/", ": ").strip()
    return text[:1].upper() + text[1:]
