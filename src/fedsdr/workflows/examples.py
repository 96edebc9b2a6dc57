"""What a recipe's model makes of its records, before any weight is loaded.

`check` and `run` share it: what passes here trains, and what will be left out is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from fedsdr.core.errors import UserError
from fedsdr.core.notices import Notice, name_items, plural_form, records_by_client
from fedsdr.data.encoding import Encoded, Encoder, Refused, raise_refused, unlike_the_template
from fedsdr.data.records import ClientData, Record
from fedsdr.data.rows import RowError, SkippedRow
from fedsdr.data.source_notices import name_skipped
from fedsdr.data.template import ChatFormat, TemplateRefusalError
from fedsdr.data.thinking import split_thought
from fedsdr.distillation.reference import with_reference
from fedsdr.distillation.teacher import rewriting_job
from fedsdr.generation.sampling import Job
from fedsdr.model.base import choose_device, choose_dtype, context_positions, load_chat
from fedsdr.model.experts import experts_notice
from fedsdr.model.fit import check_size, loaded_bytes
from fedsdr.model.folder import check_token_table
from fedsdr.model.layers import layer_shape, select_layers
from fedsdr.model.outline import model_outline, token_table
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.recipe import Recipe

FLOAT32 = 4  # bytes
FitsContext = Callable[[Record, Distill], bool]  # whether a record's request fits the context


@dataclass(frozen=True)
class PreparedRecords:
    """clients: without the records that are skipped. encoded: each client's examples.
    adapter_bytes: of one stream's tensors. template: which chat template it is, in words."""

    clients: Sequence[ClientData] = ()
    skipped: Sequence[SkippedRow] = ()
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    adapter_bytes: int = 0
    notices: tuple[Notice, ...] = ()
    template: str = ""


def prepare_records(
    methods: Sequence[Method], clients: Sequence[ClientData], path: str, weights: bool = True
) -> PreparedRecords:
    """methods: of a run, its own the last. path: of the model's configuration and tokenizer.
    weights: whether the weights must be here; else nothing is downloaded either.

    Raises `UserError` for layers that `lora.targets` names and the model lacks, and for records
    that its template or its table of tokens refuses.
    """
    recipe = methods[-1].recipe
    base = model_outline(path, download=weights)
    if weights and (tokens := token_table(base)):
        check_token_table(path, *tokens)
    if recipe.model.memory_check and weights:
        _check_memory(recipe, base)
    chat = load_chat(path, recipe.model)
    context = context_positions(base.config)
    paths = select_layers(base, recipe.lora.targets, recipe.lora.layers)
    frozen = experts_notice(base, paths)
    limit = min(recipe.model.max_length, context)
    table = base.config.get_text_config().vocab_size
    encoder = Encoder(chat, limit, table, recipe.evaluate.limit)
    rewriting = distill_kinds(methods, lambda recipe: recipe.federation.rewrites)
    teaching = distill_kinds(methods, lambda recipe: recipe.has_teacher)
    fits = cache(partial(_fits_rewriting, encoder=encoder, context=context))
    skipped: list[SkippedRow] = []
    if recipe.data.invalid == "skip":
        asking = [*rewriting, *(options for options in teaching if options not in rewriting)]
        clients, skipped = _without_refused(clients, encoder, asking, fits)
    encoded = encoder.clients(clients)
    notices = [
        *_skipped(skipped),
        *([Notice("frozen", frozen)] if frozen else []),
        *_unused(chat, table),
        *_dated(chat),
        *_thoughts(chat, clients),
        *_lengths(recipe, encoded, limit),
        *_not_judged(recipe, clients, encoded, limit),
        *_not_rewritten(rewriting, clients, fits, context),
        *_not_taught(teaching, clients, encoder, context),
    ]
    size = sum(recipe.lora.rank * sum(layer_shape(base.get_submodule(path))) for path in paths)
    return PreparedRecords(clients, skipped, encoded, size * FLOAT32, tuple(notices), chat.source)


def _without_refused(
    clients: Sequence[ClientData], encoder: Encoder, kinds: Sequence[Distill], fits: FitsContext
) -> tuple[list[ClientData], list[SkippedRow]]:
    """The clients without the records that the template or the table of tokens refuses, and these.

    Raises `UserError` for a client that would have none to learn from.
    """
    refused: Refused = []

    def is_usable(record: Record, learnt: bool) -> bool:
        try:
            encoder.example(record)
            for options in kinds if learnt and not record.calls else ():
                fits(record, options)
        except RowError as error:
            refused.append((record.origin, error))
            return False
        return True

    kept = []
    for client in clients:
        train = tuple(record for record in client.train if is_usable(record, learnt=True))
        if client.train and not train:
            raise _all_skipped(client, *refused[-len(client.train)])
        held_out = tuple(record for record in client.held_out if is_usable(record, learnt=False))
        kept.append(ClientData(client.name, train, held_out))
    return kept, [SkippedRow(place, error.fault) for place, error in refused]


def _all_skipped(client: ClientData, place: str, error: RowError) -> UserError:
    return UserError(
        f"client {client.name!r}: no record is left to learn from, since all {len(client.train)} "
        f"are skipped (first {place}: {error.fault}): set model.template to "
        "another template, mend the rows, or remove the client's sources"
    )


def _fits_rewriting(record: Record, options: Distill, encoder: Encoder, context: int) -> bool:
    """Whether the request to rewrite a record, and the rewrite, fit into the context.

    Raises `RowError` where the template or the table of tokens refuses the request.
    """
    job = _request(record, options, encoder)
    if len(job.prompt) + job.limit > context:
        return False
    encoder.check_ids(job.prompt)
    return True


def _fits_teacher(record: Record, options: Distill, encoder: Encoder, context: int) -> bool:
    """Whether a teacher can be shown the record; so it is where none is learnt.

    Raises `RowError` as `_fits_rewriting` does.
    """
    job, example = _request(record, options, encoder), encoder.example(record)
    if example is None:
        return True
    if with_reference(example, record, job, context, encoder.limit).reference is None:
        return False
    encoder.check_ids(job.prompt)
    return True


def _request(record: Record, options: Distill, encoder: Encoder) -> Job:
    try:
        return rewriting_job(encoder.chat, record, options, 0, 0)
    except TemplateRefusalError as error:
        raise unlike_the_template(error) from error


def _skipped(rows: Sequence[SkippedRow]) -> list[Notice]:
    words = f"{plural_form(len(rows), 'record')} that cannot be learnt: {name_skipped(rows)}"
    return [Notice("skipped", words)] if rows else []


def _check_memory(recipe: Recipe, base: Any) -> None:
    options, device = recipe.model, choose_device(recipe.model.device)
    dtype = choose_dtype(recipe.dtype, device)
    size = loaded_bytes(options.path, base, dtype, options.quantisation)
    check_size(size, options.path, dtype, options.quantisation, device)


def _unused(chat: ChatFormat, table: int) -> list[Notice]:
    """Tokens that the table lacks; no record has one, or `Encoder` had refused it."""
    lacking = sum(number >= table for number in chat.tokenizer.get_vocab().values())
    if not lacking:
        return []
    words = f"{plural_form(lacking, 'token')} of the tokenizer beyond the model's table of {table}"
    return [Notice("unused", f"{words}: no record has one")]


def _dated(chat: ChatFormat) -> list[Notice]:
    if not chat.date:
        return []
    words = f"the chat template prints today's date; here that is {chat.date} (model.date)"
    return [Notice("dated", words)]


def _thoughts(chat: ChatFormat, clients: Sequence[ClientData]) -> list[Notice]:
    """Responses that begin with a thought, of a model that is not to think."""
    begun = {
        client.name: [
            record.origin
            for record in (*client.train, *client.held_out)
            if split_thought(record.response, chat.marks)
        ]
        for client in clients
    }
    if chat.thinks or not _total(begun):
        return []
    words = f"the thoughts at the beginning of responses ({records_by_client(begun)})"
    return [Notice("cut", f'{words}: with model.thinking = "on" they are learnt')]


def _lengths(recipe: Recipe, encoded: Mapping[str, Encoded], limit: int) -> list[Notice]:
    notices = []
    if recipe.model.max_length > limit:
        words = (
            f"model.max_length = {recipe.model.max_length} to the {limit} of the model's context"
        )
        notices.append(Notice("cut", words))
    left_out = {name: each.left_out for name, each in encoded.items()}
    if count := _total(left_out):
        room = f"whose prompt leaves no room for a response in {limit} tokens"
        words = f"{plural_form(count, 'record')} {room} ({records_by_client(left_out)})"
        notices.append(Notice("left out", words))
    cut = {name: each.cut for name, each in encoded.items()}
    if count := _total(cut):
        responses = plural_form(count, "response")
        words = f"{responses} at {limit} tokens, without an end ({records_by_client(cut)})"
        notices.append(Notice("cut", words))
    return notices


def _not_judged(
    recipe: Recipe, clients: Sequence[ClientData], encoded: Mapping[str, Encoded], limit: int
) -> list[Notice]:
    """Where held-out records judge: in a lab, its facts do."""
    if recipe.world:
        return []
    notices = []
    too_long = {name: each.unjudged for name, each in encoded.items()}
    if count := _total(too_long):
        words = (
            f"{plural_form(count, 'held-out record')} whose prompt leaves no room in {limit} tokens"
        )
        notices.append(Notice("not judged", f"{words} ({records_by_client(too_long)})"))
    unheard = [client.name for client in clients if not encoded[client.name].held_out]
    if len(unheard) == len(clients):
        words = "any client: there is no held-out record, so no held-out loss"
        notices.append(Notice("not judged", words))
    elif unheard:
        words = f"{name_items(unheard)}, without a held-out record"
        notices.append(Notice("not judged", words))
    return notices


def distill_kinds(methods: Sequence[Method], asks: Callable[[Recipe], bool]) -> list[Distill]:
    """The options of distillation of those of a run's methods that ask the base model, each once,
    its own method's first."""
    *baselines, own = methods
    kinds: list[Distill] = []
    for recipe in (own.recipe, *(baseline.recipe for baseline in baselines)):
        if asks(recipe) and recipe.distill not in kinds:
            kinds.append(recipe.distill)
    return kinds


def _not_rewritten(
    kinds: Sequence[Distill], clients: Sequence[ClientData], fits: FitsContext, context: int
) -> list[Notice]:
    """Records whose rewriting request, with room for the rewrite, is longer than the context."""
    notices: list[Notice] = []
    calls = {c.name: [r.origin for r in c.train if r.calls] for c in clients}
    if kinds and (count := _total(calls)):
        words = f"{plural_form(count, 'response')} with calls of tools ({records_by_client(calls)})"
        notices.append(Notice("not rewritten", words))
    for options in kinds:
        too_long = _too_long(options, clients, fits)
        if count := _total(too_long):
            words = f"{plural_form(count, 'record')} whose rewriting would not fit {context} tokens"
            notice = Notice("not rewritten", f"{words} ({records_by_client(too_long)})")
            notices += [] if notice in notices else [notice]
    return notices


def _not_taught(
    kinds: Sequence[Distill], clients: Sequence[ClientData], encoder: Encoder, context: int
) -> list[Notice]:
    """Records that soft losses learn by their words, since a teacher cannot be shown them."""
    notices: list[Notice] = []
    calls = {c.name: [r.origin for r in c.train if r.calls] for c in clients}
    fits = partial(_fits_teacher, encoder=encoder, context=context)
    for options in kinds:
        too_long = _too_long(options, clients, fits)
        learnt = {name: [*calls[name], *places] for name, places in too_long.items()}
        if count := _total(learnt):
            words = f"{plural_form(count, 'record')} with calls of tools, or whose reference would "
            words += f"not fit {context} tokens: their words are learnt"
            notice = Notice("not soft", f"{words} ({records_by_client(learnt)})")
            notices += [] if notice in notices else [notice]
    return notices


def _too_long(
    options: Distill, clients: Sequence[ClientData], fits: FitsContext
) -> dict[str, list[str]]:
    """Client -> the places of its records without calls that do not fit. Raises `UserError` for
    those that are refused."""
    found: dict[str, list[str]] = {client.name: [] for client in clients}
    refused: Refused = []
    for client in clients:
        for record in (each for each in client.train if not each.calls):
            try:
                if not fits(record, options):
                    found[client.name].append(record.origin)
            except RowError as error:
                refused.append((record.origin, error))
    raise_refused(refused)
    return found


def _total(records: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, records.values()))
