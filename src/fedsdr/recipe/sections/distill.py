"""`[distill]`: how clients rewrite, and what a rewrite must pass."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share


class Entailment(Section):
    """The check "entailment": a natural language inference model reads both responses.

    model: a sequence classifier's folder or hub name.
    label: its class that means entailment, by name, whatever the case.
    direction: what must follow from what. "rewrite_entails_raw": nothing of the raw response is
        lost or contradicted (additions pass); "raw_entails_rewrite": nothing is added; "both".
    threshold: the least probability of `label`, in each direction asked for.
    question: whether the instruction stands before both responses, which short answers need.
    max_length: longest pair in tokens; a longer one is refused, since it was not checked.
    device: the one of `[model]` where it is not given.
    """

    model: str = ""
    label: str = "entailment"
    direction: Literal["rewrite_entails_raw", "raw_entails_rewrite", "both"] = "rewrite_entails_raw"
    threshold: Share = 0.5
    question: bool = True
    max_length: Positive = 512
    batch_size: Positive = 32
    device: str | None = None


class Support(Section):
    """The check "support": lexical support, not entailment (`fedsdr.distillation.support`).

    supported: least share of the rewrite's content words and numbers that stand in the prompt or
        the raw response.
    kept: least share of the raw response's numbers and rare words that stand in the rewrite.
    rare: a word is rare in the raw responses of at most this share of the client's records.
    """

    supported: Share = 0.2
    kept: Share = 0.5
    rare: Share = 0.01


class Oracle(Section):
    """The check "oracle", for simulations: it knows the gold answer and errs at given rates.

    false_accept: how often it lets a wrong rewrite pass. false_reject: how often it refuses a
        right one. Each attempt is an independent draw.
    """

    false_accept: Share = 0.0
    false_reject: Share = 0.0


class Distill(Section):
    """Self-distillation: how clients rewrite, and the gate a rewrite must pass.

    prompt: with {instruction} and {response}, the user turn of the rewriting request.
    temperature: 0 is greedy; retry_temperature is that of every attempt after the first.
    max_ratio, min_tokens: a rewrite may have at most
        max(min_tokens, max_ratio x tokens of the reference) tokens.
    checks: names in `fedsdr.distillation.verify.CHECKS`, in order: put slow ones last, they see
        what the others let pass. `[distill.entailment]`, `[distill.support]` and `[distill.oracle]`
        are the options of those.
    verify: the checks that the method "fedsd_verified" adds to them.
    attempts: tries for each record, each with a fresh seed, before the raw response is kept.
    prefer: which accepted rewrite is kept: the "first", or the "shorter" of `attempts` tries, the
        one of fewest tokens.
    batch_size: texts in the works at a time.
    generator: who runs the model (`fedsdr.generation.table`). "fedsdr" samples each text from its
        own seed, whatever its neighbours; "transformers" is its continuous batching, for GPUs.
    pilot: records a client whose rewriting is timed and judged before that of all, where there are
        several attempts or a check with a model; 0 for none.
    """

    prompt: str = (
        "{instruction}\n\nHere is a reference answer:\n{response}\n\n"
        "Guided by the reference answer, write your own response to the instruction. "
        "Do not mention the reference answer."
    )
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    retry_temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    max_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    min_tokens: Positive = 32
    checks: tuple[str, ...] = ("empty", "truncated", "repetition", "meta_talk")
    verify: tuple[str, ...] = ("answer",)
    attempts: Positive = 1
    prefer: Literal["first", "shorter"] = "first"
    batch_size: Positive = 16
    generator: Literal["fedsdr", "transformers"] = "fedsdr"
    pilot: Annotated[int, Field(ge=0)] = 16
    entailment: Entailment = Entailment()
    support: Support = Support()
    oracle: Oracle = Oracle()

    @model_validator(mode="after")
    def _prompt_has_places(self) -> "Distill":
        for place in ("{instruction}", "{response}"):
            if place not in self.prompt:
                raise ValueError(f"prompt must contain {place}")
        return self
