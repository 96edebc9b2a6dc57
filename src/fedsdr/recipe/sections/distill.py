"""`[distill]`: how clients rewrite, and what a rewrite must pass."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share
from fedsdr.recipe.sections.prompts import resolve_prompt


class Entailment(Section):
    """The check `"entailment"`: a natural language inference model compares both responses."""

    model: str = ""
    """A sequence classifier: a folder or hub name. Required by the check."""
    label: str = "entailment"
    """The name of the classifier's entailment class, in any case."""
    direction: Literal["rewrite_entails_raw", "raw_entails_rewrite", "both"] = "rewrite_entails_raw"
    """What must follow from what. `"rewrite_entails_raw"`: nothing in the raw response is lost or
    contradicted (additions pass); `"raw_entails_rewrite"`: nothing is added; `"both"`: the two are
    equivalent."""
    threshold: Share = 0.5
    """The least probability of `label`, in each direction that is checked."""
    question: bool = True
    """Prefix both responses with the instruction; short answers need it."""
    max_length: Positive = 512
    """The longest pair, in tokens. A longer one is rejected as not checked."""
    batch_size: Positive = 32
    """Pairs in a batch of the classifier."""
    device: str | None = None
    """The classifier's device; by default `model.device`."""


class Support(Section):
    """The check `"support"`: lexical support, not entailment (`fedsdr.distillation.support`)."""

    supported: Share = 0.2
    """The least share of the rewrite's content words and numbers that occur in the prompt or the
    raw response."""
    kept: Share = 0.5
    """The least share of the raw response's numbers and rare words that occur in the rewrite."""
    rare: Share = 0.01
    """A word is rare if it occurs in at most this share of the client's raw responses."""


class Oracle(Section):
    """The check `"oracle"`, for simulations: it knows the gold answer and errs at given rates,
    independently for each attempt.
    """

    false_accept: Share = 0.0
    """The probability of accepting a wrong rewrite."""
    false_reject: Share = 0.0
    """The probability of rejecting a correct rewrite."""


class SelfCheck(Section):
    """The check `"self"`: the base model compares what it says with the record's own response and
    with those of other records (`fedsdr.distillation.self_check`). Needs no gold answers."""

    false_share: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """The expected share, among accepted rewrites, of those that ignore their reference."""
    references: Annotated[int, Field(ge=2)] = 3
    """Responses of other records that each rewrite is compared with; more are used where a client
    has few records."""


class Distill(Section):
    """How clients rewrite their responses, and the checks that a rewrite must pass."""

    prompt: Annotated[str, AfterValidator(resolve_prompt), Field(validate_default=True)] = "brief"
    """The user turn of the rewriting request: the name of a shipped one (docs/distillation.md),
    or a text with the placeholders `{instruction}` and `{response}`. `fedsdr distill --prompts`
    compares them on your own data."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """The sampling temperature of the first attempt; 0 decodes greedily."""
    retry_temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The sampling temperature of all later attempts."""
    contrast: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Contrastive rewriting: how much of what the model would answer without the reference is taken
    away at each token (`fedsdr.generation.contrast`), so that the reference weighs more than
    memory. 0 is plain rewriting; 1 is strong. Costs a second pass per token."""
    contrast_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Tokens less likely than this share of the likeliest one's probability, with the reference,
    are never written. Lower it where memory still wins."""
    max_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """A rewrite may have at most max(`min_tokens`, `max_ratio` x tokens of the raw response)
    tokens."""
    min_tokens: Positive = 32
    """See `max_ratio`."""
    thinking_tokens: Positive = 512
    """Tokens that a rewrite may have in addition for thoughts, with `model.thinking = "on"`."""
    checks: tuple[str, ...] = (
        "empty", "truncated", "thoughts", "turns", "no_answer", "echo", "meta_talk", "repetition",
        "language", "invention", "label", "number", "answer",
    )  # fmt: skip
    """The checks, in order (`fedsdr.distillation.verify.CHECKS`). Each sees only what the ones
    before it accepted, so put slow ones last. The last three of the default act where the record
    has a gold answer or the instruction offers labels. For texts that are meant to be invented
    (stories, examples), leave out `"invention"`."""
    verify: tuple[str, ...] = ("answer",)
    """The checks that the method `"fedsd_verified"` adds to `checks`, unless they are there
    already; it also makes at least four attempts."""
    attempts: Positive = 1
    """Attempts for each record, each with a fresh seed, before the raw response is kept."""
    prefer: Literal["first", "shorter"] = "first"
    """Which accepted rewrite to keep: the `"first"`, or of all `attempts` the `"shorter"` one in
    tokens."""
    batch_size: Positive = 16
    """Texts that are generated at once."""
    generator: Literal["fedsdr", "transformers"] = "fedsdr"
    """The text generator (`fedsdr.generation.table`). `"fedsdr"` samples each text from its own
    seed, independent of the rest of the batch; `"transformers"` uses continuous batching of
    transformers, on GPUs."""
    pilot: Annotated[int, Field(ge=0)] = 16
    """Records per client that are rewritten first to estimate cost and acceptance, if there are
    several attempts or a check with a model; 0 for none."""
    entailment: Entailment = Entailment()
    """Options of the check `"entailment"`."""
    support: Support = Support()
    """Options of the check `"support"`."""
    self_check: SelfCheck = SelfCheck()
    """Options of the check `"self"`."""
    oracle: Oracle = Oracle()
    """Options of the check `"oracle"`."""

    @model_validator(mode="after")
    def _contrast_is_generated(self) -> "Distill":
        if self.contrast and self.generator != "fedsdr":
            raise ValueError(
                f'distill.contrast = {self.contrast:g} needs the generator "fedsdr", which reads '
                f"two prompts at once, and distill.generator = {self.generator!r}: change one"
            )
        return self
