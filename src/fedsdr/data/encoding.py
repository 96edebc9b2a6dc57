"""All clients' records as tokens: which the chat template or the embedding table refuses, which do
not fit, and which are truncated. Needs no weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fedsdr.data.example import Example
from fedsdr.data.records import ClientData, Record
from fedsdr.data.rows import RowError, row_refusal
from fedsdr.data.template import ChatFormat, TemplateRefusalError, nothing_fits

Refused = list[tuple[str, RowError]]  # where a record stands, and why it is refused


@dataclass(frozen=True)
class Encoded:
    """One client's examples in the order of its records, and the positions of incomplete records.

    train, held_out: the raw records that fit. left_out, unjudged: records to train on and held out
    whose prompt leaves no room for a response. cut: records to train on whose response is cut.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    left_out: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """limit: tokens of an example. table: rows of the model's table of tokens. judged: held-out
    records of each client that are used, None for all."""

    chat: ChatFormat
    limit: int
    table: int
    judged: int | None = None
    _made: dict[Record, Example | None] = field(default_factory=dict, compare=False, repr=False)

    def clients(self, clients: Sequence[ClientData]) -> dict[str, Encoded]:
        """Raises `UserError`, with the place of the first and of others, where the template
        refuses records or they have tokens that the model has not, and for a client of whose
        records none fits."""
        refused: Refused = []
        found = {client.name: self._client(client, refused) for client in clients}
        raise_refused(refused)
        for client in clients:
            if client.train and not found[client.name].train:
                raise nothing_fits(client.name, self.limit)
        return found

    def _client(self, client: ClientData, refused: Refused) -> Encoded:
        encode = partial(self._encode, refused=refused)
        train = [(r.origin, encode(r)) for r in client.train]
        held_out = [(r.origin, encode(r)) for r in client.held_out[: self.judged]]
        return Encoded(
            tuple(example for _, example in train if example),
            tuple(example for _, example in held_out if example),
            tuple(origin for origin, example in train if example is None),
            tuple(origin for origin, example in held_out if example is None),
            tuple(origin for origin, example in train if example and self._is_cut(example)),
        )

    def _encode(self, record: Record, refused: Refused) -> Example | None:
        try:
            return self.example(record)
        except RowError as error:
            refused.append((record.origin, error))
            return None

    def example(self, record: Record) -> Example | None:
        """A record as it is learnt, None where it does not fit; tokenised at the first call.

        Raises `RowError` where the template refuses it, or it has a token that the model has not.
        """
        if record not in self._made:
            self._made[record] = self._tokenise(record)
        return self._made[record]

    def _tokenise(self, record: Record) -> Example | None:
        try:
            example = self.chat.encode(record, record.response, self.limit)
        except TemplateRefusalError as error:
            raise unlike_the_template(error) from error
        if example is not None:
            self.check_ids((*example.prompt, *example.response))
        return example

    def _is_cut(self, example: Example) -> bool:
        return len(example) == self.limit and example.response[-1] != self.chat.end_of_turn

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise `RowError` for a token that the model's table lacks."""
        beyond = next((i for i in ids if i >= self.table), None)
        if beyond is None:
            return
        tokenizer = self.chat.tokenizer
        raise RowError(
            "a token that the model does not have",
            f"{tokenizer.convert_ids_to_tokens(beyond)!r:.60} is number {beyond} of "
            f"{len(tokenizer)}, and the model's table has {self.table} rows",
            "enlarge the table (model.resize_token_embeddings(len(tokenizer)), then "
            "model.save_pretrained), or give the tokenizer that the model was made with",
        )


def raise_refused(refused: Refused) -> None:
    """Raise one `UserError` for all refused records, if any."""
    if refused:
        raise row_refusal(refused[0][0], refused) from refused[0][1]


def unlike_the_template(error: TemplateRefusalError) -> RowError:
    """The error of a row whose conversation the template refuses."""
    return RowError(
        "the chat template refuses this conversation",
        error.reason,
        "mend or remove the row, set model.template to another template, or leave such rows out "
        'with data.invalid = "skip"',
    )
