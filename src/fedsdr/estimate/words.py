"""The plan of a run in words: for a terminal and for the page of a diagnosis."""

from dataclasses import asdict
from typing import Any, Final

from fedsdr.estimate.memory import Memory
from fedsdr.estimate.plan import MethodPlan, RunPlan
from fedsdr.report.text import format_size

METHOD_COLUMNS: Final = (
    "method",
    "rounds",
    "steps",
    "tokens",
    "PFLOP",
    "a client",
    "in all",
    "time",
)


def method_cells(plan: MethodPlan) -> list[str]:
    """Bytes as sent / received: by one client in round 1, by all clients in all rounds."""
    sent = plan.traffic
    one = f"{format_size(sent.upload)} / {format_size(sent.download)}" if plan.rounds else "-"
    return [
        plan.name, str(plan.rounds), f"{plan.steps:,}", f"{plan.tokens:,}",
        significant_digits((plan.flops + plan.evaluation_flops) / 1e15, 2),
        one,
        f"{format_size(sent.bytes_up)} / {format_size(sent.bytes_down)}", format_hours(plan.hours),
    ]  # fmt: skip


def describe_memory(memory: Memory) -> str:
    """The peak in a line, and what it is made of."""
    parts = {
        "weights": memory.weights,
        "adapters": memory.adapters,
        "gradients and optimiser": memory.optimiser,
        "activations": memory.activations,
        "logits": memory.logits,
        "cache of rewriting": memory.cache,
    }
    listed = ", ".join(
        f"{k} {'unknown' if v is None else format_size(v)}" for k, v in parts.items()
    )
    return f"memory: {format_size(memory.peak)} at the peak ({listed})"


def describe_rewriting(plan: RunPlan) -> str:
    """Requests, tokens and time in a line; "" where no method distils."""
    rewrites = plan.rewrites
    if not any(each.distils for each in plan.methods):
        return ""
    return (
        f"rewriting, once: {rewrites.requests:,} requests, {rewrites.prompt_tokens:,} tokens, "
        f"about {rewrites.tokens:,} tokens written, {format_hours(rewrites.hours)} "
        f"(an attempt writes at most {rewrites.most_tokens:,}; "
        f"a record has at most {rewrites.attempts})"
    )


def describe_rehearsal(plan: RunPlan) -> str:
    """What the base model generates for rehearsal, in a line; "" where no method rehearses."""
    rehearsed = plan.rehearsed
    if not rehearsed.prompts:
        return ""
    return (
        f"rehearsal, once: {rehearsed.prompts:,} prompts with answers, at most "
        f"{rehearsed.most_tokens:,} tokens written, {format_hours(rehearsed.hours)}"
    )


def describe_teaching(plan: RunPlan) -> str:
    """What teachers of soft losses read, and students sample for them, in a line; "" where no
    method has such a loss."""
    methods: dict[str, list[str]] = {}
    for each in plan.methods:
        sampled = f" (about {each.sampled:,} tokens sampled while training)" if each.sampled else ""
        if each.shown:
            methods.setdefault(f"{each.shown:,} tokens{sampled}", []).append(each.name)
    parts = [f"{tokens} in {', '.join(names)}" for tokens, names in methods.items()]
    return f"read by teachers: {'; '.join(parts)}" if parts else ""


def plan_costs(plan: RunPlan) -> dict[str, Any]:
    """The plan with its numbers, and in words for a page."""
    words = [
        describe_rewriting(plan),
        describe_rehearsal(plan),
        describe_teaching(plan),
        describe_memory(plan.memory),
        f"in all: {format_hours(plan.hours)}",
    ]
    return {
        "plan": asdict(plan),
        "words": [*filter(None, words), *plan.assumptions],
        "columns": list(METHOD_COLUMNS),
        "methods": [method_cells(each) for each in plan.methods],
    }


def format_hours(count: float | None) -> str:
    if count is None:
        return "time unknown"
    if count >= 1:
        return f"{significant_digits(count, 3)} h"
    return f"{count * 60:.2g} min" if count * 60 >= 1 else f"{count * 3600:.2g} s"


def significant_digits(value: float, count: int) -> str:
    """The number with so many digits, or all before the point where these are more."""
    return f"{value:,.0f}" if value >= 10**count - 0.5 else f"{value:.{count}g}"
