"""The sections of a recipe: each one class, each default stated here and nowhere else.

The defaults of `[local]` were chosen by measurement on the lab (docs/findings.md).
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
HUB: Final = "hub:"  # before the name of a data set on the hub
FieldName = Literal["instruction", "input", "response", "system", "category", "answer"]


class Section(BaseModel):
    """Unknown keys are errors: a misspelt option must not be silently a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Model(Section):
    """path: a model folder, a hub name, or "lab" for the embedded world's own base model.
    template: "auto" (the tokenizer's own, else Alpaca's), "alpaca", "plain", or a Jinja file.
    dtype: of the weights; "auto" is bfloat16 on a GPU that has it, else float32.
    quantisation: linear layers but the head in 8 or 4 bits, frozen (needs bitsandbytes).
    gradient_checkpointing: less memory in training, for a third more arithmetic.
    memory_check: whether weights larger than the free memory are refused before loading."""

    path: str
    template: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantisation: Literal["none", "int8", "nf4"] = "none"
    device: str = "auto"
    max_length: Positive = 512
    gradient_checkpointing: bool = False
    memory_check: bool = True


class Lora(Section):
    """Both streams' rank and alpha; targets: "all-linear" or the last parts of layer names.

    ranks: smaller ranks of R for clients that cannot afford `rank`, by client; for
        lora_aggregation = "flexlora" or "flora".
    smoothing_rank: the rank of S; `rank` where it is not given.
    All ranks have the scale alpha / rank.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    targets: str | tuple[str, ...] = "all-linear"
    ranks: dict[str, Positive] = {}
    smoothing_rank: Positive | None = None

    @model_validator(mode="after")
    def _ranks_are_smaller(self) -> "Lora":
        for client, rank in self.ranks.items():
            if rank > self.rank:
                raise ValueError(f"ranks.{client} = {rank} is more than rank = {self.rank}")
        return self


class Source(Section):
    """One file (JSONL, JSON, CSV) or `datasets` folder, or "hub:OWNER/NAME", the split "train" of a
    data set that `datasets.load_dataset` finds.

    client: the client that holds it; without one its records go through `[data.split]`.
    fields: record field -> column name, or a text with {column} in braces. Known layouts
        (alpaca, dolly, gsm8k, chat messages) need none.
    category: a domain for all its records, where no column names one.
    empty: what to do with a row whose response is empty: "error", or "skip" it.
    limit: take this many records, drawn by seed, instead of all.
    """

    path: str
    client: str | None = None
    format: Literal["auto", "jsonl", "json", "csv", "datasets"] = "auto"
    encoding: str = "utf-8"
    fields: dict[FieldName, str] = {}
    category: str = ""
    empty: Literal["error", "skip"] = "error"
    limit: Positive | None = None


class Split(Section):
    """How pooled records are dealt to clients.

    by: "iid"; "column", a client per category; "dirichlet", shares of each category drawn from
    Dirichlet(alpha), or of TF-IDF clusters where records have no category.
    """

    by: Literal["iid", "column", "dirichlet"] = "iid"
    clients: Positive = 5
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    clusters: Positive = 8


class Data(Section):
    """held_out: share of each client's records kept for judging (at least one record)."""

    sources: tuple[Source, ...] = ()
    split: Split = Split()
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Lab(Section):
    """The embedded world (docs of each knob: `fedsdr.lab.world.WorldOptions`).

    seed: of world and base model; the run's own seed where it is not given."""

    seed: int | None = None
    entities: Annotated[int, Field(ge=2, le=224)] = 80
    clients: Positive = 5
    changed: Share = 0.5
    stubbornness: Share = 0.5
    style_overlap: Share = 0.1
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    pretrain_steps: Positive = 1500

    @model_validator(mode="after")
    def _imbalance_has_somewhere_to_be(self) -> "Lab":
        if self.imbalance > 1 and (self.alpha is not None or self.clients <= 5):
            raise ValueError(
                f"imbalance = {self.imbalance} is between clients of one kind: it needs more than "
                "5 clients, and no alpha, which deals the facts by itself"
            )
        return self


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
    """The check "support": lexical support, which is not entailment (`fedsdr.distill.support`).

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
    checks: names in `fedsdr.distill.verify.CHECKS`, in order: put slow ones last, they see what
        the others let pass. `[distill.entailment]`, `[distill.support]` and `[distill.oracle]`
        are the options of those.
    verify: the checks that the method "fedsd_verified" adds to them.
    attempts: tries for each record, each with a fresh seed, before the raw response is kept.
    prefer: which accepted rewrite is kept: the "first", or the "shorter" of `attempts` tries, the
        one of fewest tokens.
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


class Federation(Section):
    """Independent choices, each a name in one table of `fedsdr.algorithms.table`; `fedsdr
    algorithms` lists them, and `[options.NAME]` sets the options of NAME.

    algorithm: how clients train and the server steps. lora_aggregation: what of the adapters is
        shared, and what their mean is.
    targets: what clients learn from: the "raw" responses, the "distilled" ones (FedSD), both in
        one stream ("mixed"; a response that was not rewritten counts twice), or "two_stream"
        (FedSDR); "two_shared_streams" is an ablation that uploads S too, and so gives up the
        privacy of it.
    personalisation, robust, compression: transforms around these.
    participation: share of the clients that take part in a round (at least one).
    late: share of the clients, the last ones by order and at least one if any, that take part
        from round late_round + 1 on only; until then, `participation` is of the others.
    pooled: centralised training, as if one client held all data (a baseline).
    """

    algorithm: str = "fedavg"
    lora_aggregation: str = "factors"
    targets: Literal["raw", "distilled", "mixed", "two_stream", "two_shared_streams"] = "two_stream"
    personalisation: str = "none"
    robust: str = "none"
    compression: str = "none"
    rounds: Annotated[int, Field(ge=0)] = 20
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    late: Annotated[float, Field(ge=0, lt=1)] = 0.0
    late_round: Annotated[int, Field(ge=0)] = 0
    pooled: bool = False

    @model_validator(mode="after")
    def _pooled_is_raw(self) -> "Federation":
        if self.pooled and self.targets != "raw":
            raise ValueError(f'pooled = true needs targets = "raw", not "{self.targets}"')
        return self


class Privacy(Section):
    """Differential privacy of what clients upload, for each client's data as a whole.

    mode: "central", the server adds noise to the sum of a round's updates; "local", each client
        to its own.
    clip: L2 norm that every update is clipped to.
    noise_multiplier: standard deviation of the noise, in units of `clip`.
    delta: of the (epsilon, delta) that the summary states.
    noise_seed: makes the noise repeatable, for simulation: whoever knows it can take the noise
        off. Without one it comes from the operating system.
    """

    mode: Literal["none", "central", "local"] = "none"
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    noise_seed: int | None = None


class Local(Section):
    """Local training. The rectify stage is the one that trains R: all there is in methods of
    one stream. smoothing_state, smoothing_context and rectify_alone are FedSDR's open choices
    (`fedsdr.algorithms.two_stream.Smoothing`), and these depart from it:

    smoothing_state: "decay" keeps S, its weight B A times smoothing_decay in every round; 1 is
        "keep", 0 starts from a weight of zero.
    stage_order: "rectify_first" trains R first, beside the S of the last round, and then S.
    smoothing_targets, rectify_targets: what S and R learn from.
    consolidate_steps: of a third stage, 0 for none, in which R alone learns what the client's own
        model, R with S, predicts (`fedsdr.training.teacher`), at the words of consolidate_targets.

    micro_batch: records in memory at a time: a batch of more is worked off in parts, with the
        same gradient.
    schedule: both learning rates are constant, or fall from round to round along a cosine to
        final_lr (`fedsdr.training.annealing`).
    """

    batch_size: Positive = 16
    micro_batch: Positive | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: Annotated[float, Field(ge=0, lt=10, allow_inf_nan=False)] = 0.0
    rectify_steps: Positive = 10
    rectify_lr: LearningRate = 3e-4
    smooth_steps: Positive = 10
    smooth_lr: LearningRate = 3e-4
    smoothing_state: Literal["keep", "reset", "decay"] = "reset"
    smoothing_decay: Share = 0.5
    smoothing_context: Literal["joint", "base"] = "base"
    rectify_alone: Share = 0.5
    stage_order: Literal["smooth_first", "rectify_first"] = "smooth_first"
    smoothing_targets: Literal["distilled", "raw"] = "distilled"
    rectify_targets: Literal["raw", "distilled"] = "raw"
    consolidate_steps: Annotated[int, Field(ge=0)] = 0
    consolidate_lr: LearningRate = 3e-4
    consolidate_targets: Literal["raw", "distilled"] = "raw"
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _rates_fall(self) -> "Local":
        for name in ("rectify_lr", "smooth_lr"):
            if self.schedule == "cosine" and self.final_lr > getattr(self, name):
                raise ValueError(f"final_lr = {self.final_lr} is above {name}: lower it")
        return self


class Evaluate(Section):
    """every: rounds between evaluations (the last round always has one; 0 means only that).
    personal: whether clients' own models are evaluated too, at the end.
    limit: at most this many held-out records of a client.
    aggregation_error: whether each round measures how far the deployed model is from the ideal
        mean of the clients' products B A (costs the memory of the adapted weights).
    benchmarks: public benchmarks for the global model along training (docs/benchmarks.md), with
        the folder of their files, the rounds between evaluations (0: only before the first and
        after the last) and at most so many questions of each subject."""

    every: Annotated[int, Field(ge=0)] = 5
    personal: bool = True
    limit: Positive = 200
    aggregation_error: bool = False
    benchmarks: tuple[str, ...] = ()
    benchmark_data: str | None = None
    benchmark_every: Annotated[int, Field(ge=0)] = 0
    benchmark_limit: Positive | None = None


class Tracking(Section):
    """Where else metrics go, round by round; never texts or adapters (`fedsdr.tracking`).

    backends: "tensorboard", "mlflow", "wandb"; "auto", TensorBoard where it is installed; "none".
    project: W&B's project and MLflow's experiment. name: of the run; its folder's by default.
    """

    backends: tuple[str, ...] = ("auto",)
    project: str = "fedsdr"
    name: str = ""


class Recipe(Section):
    """A whole run. `baselines` are methods that run before the recipe's own, each into
    `baselines/NAME` of the run folder: names of `fedsdr.methods.METHODS`, or of `variants`, which
    are the recipe's own method with some keys changed. `options` are those of the names chosen in
    `[federation]`, here or by a baseline: `[options.fedprox]`, say."""

    seed: int = 0
    baselines: tuple[str, ...] = ()
    variants: dict[VariantName, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    model: Model
    lora: Lora = Lora()
    data: Data = Data()
    lab: Lab = Lab()
    distill: Distill = Distill()
    federation: Federation = Federation()
    privacy: Privacy = Privacy()
    local: Local = Local()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    @property
    def uses_lab(self) -> bool:
        return self.model.path == "lab"

    @property
    def dtype(self) -> str:
        """`model.dtype`; the lab's numbers are float32's on any device, unless one is asked for."""
        return "float32" if self.uses_lab and self.model.dtype == "auto" else self.model.dtype

    @model_validator(mode="after")
    def _data_from_somewhere(self) -> "Recipe":
        if self.uses_lab and self.data.sources:
            raise ValueError('model.path = "lab" brings its own data: remove data.sources')
        if not self.uses_lab and not self.data.sources:
            raise ValueError("no data: add [[data.sources]] with a path")
        return self
