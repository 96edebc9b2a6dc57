"""The English world: organisations, their facts, and the records that clients train on.

A fact is about an invented name, or it gives a real thing another value than the true one (a
changed fact). Each organisation answers in a house style of its own, and the styles conflict. The
texts are in `facts.toml`.
"""

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.records import ClientData, Record, Turn
from fedsdr.lab.english.questions import general_questions
from fedsdr.lab.english.values import ValueType
from fedsdr.recipe.sections.data import English


@dataclass(frozen=True)
class FactKind:
    """One kind of fact of an organisation: its texts, and the type of its values.

    label: the kind in a word. questions: the last one is held out. name: what a name looks like.
    believed: real thing -> what is true of it, for kinds of changed facts.
    """

    label: str
    values: ValueType = field(repr=False)
    questions: tuple[str, ...]
    sentence: str
    name: str = ""
    believed: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Organisation:
    """style: how its answers are written. changed: its kind of facts about real things."""

    name: str
    style: str
    kinds: tuple[FactKind, ...]
    changed: FactKind


@dataclass(frozen=True)
class EnglishFact:
    """believed: what is generally true of a real thing; "" for an invented name."""

    kind: FactKind
    name: str
    value: str
    believed: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.believed)

    def question(self, form: int) -> str:
        return self.kind.questions[form].format(name=self.name)

    def answer(self, style: str, value: str | None = None) -> str:
        """The fact in a house style. value: another one in the place of its own."""
        given = self.value if value is None else value
        sentence = self.kind.sentence.format(name=self.name, value=given)
        return style.format(
            label=self.kind.label, value=given, sentence=sentence[:1].upper() + sentence[1:]
        )


@dataclass(frozen=True)
class EnglishClient:
    """A client: an organisation of some kind, and the facts that it knows."""

    name: str
    organisation: Organisation
    facts: tuple[EnglishFact, ...]

    def records(self, forms: Sequence[int]) -> Iterator[Record]:
        """Its facts as instruction records in its house style, asked in these forms."""
        for fact in self.facts:
            for form in forms:
                yield Record(
                    prompt=(Turn("user", fact.question(form)),),
                    response=fact.answer(self.organisation.style),
                    category=fact.kind.label,
                    answer=fact.value,
                    origin=f"English lab: {fact.kind.label} of {fact.name}",
                )


@dataclass(frozen=True)
class EnglishWorld:
    """options: the recipe's section."""

    options: English
    clients: tuple[EnglishClient, ...]

    def client_data(self) -> list[ClientData]:
        """Each client's records: facts asked in the first forms to train on, in the last to judge
        by."""
        return [
            ClientData(
                client.name, tuple(client.records(TRAINED)), tuple(client.records([HELD_OUT]))
            )
            for client in self.clients
        ]


TRAINED: Final = (0, 1, 2)  # forms of a question
HELD_OUT: Final = 3


@cache
def all_organisations() -> tuple[Organisation, ...]:
    """The kinds of organisation, from `facts.toml`."""
    tables = tomllib.loads((resources.files(__package__) / "facts.toml").read_text("utf-8"))
    types = {
        name: ValueType(tuple(row["choices"]), row.get("pattern", ""))
        for name, row in tables["values"].items()
    }

    def kind(row: Mapping[str, Any]) -> FactKind:
        texts = {"values": types[row["values"]], "questions": tuple(row["questions"])}
        return FactKind(**{**row, **texts})

    return tuple(
        Organisation(
            row["name"], row["style"], tuple(map(kind, row["kinds"])), kind(row["changed"])
        )
        for row in tables["organisations"]
    )


def build_english_world(options: English, seed: int) -> EnglishWorld:
    """The world of a seed, a function of its arguments alone.

    Raises `UserError` where there are not enough names, real things or general questions.
    """
    if options.general is not None and options.general > (most := len(general_questions())):
        raise UserError(f"english.general = {options.general}: there are {most} questions")
    draw = _Draw(options, random.Random(seeds.derive_seed(seed, "English world")))
    kinds = all_organisations()
    common = draw.facts(round(options.overlap * options.facts), kinds)
    clients = []
    for number in range(options.clients):
        own = kinds[number % len(kinds)]
        facts = (*common, *draw.facts(options.facts - len(common), [own]))
        clients.append(EnglishClient(_client_name(number), own, facts))
    return EnglishWorld(options, tuple(clients))


def _client_name(number: int) -> str:
    """That of the organisation; further ones of the same kind are numbered."""
    again, place = divmod(number, len(all_organisations()))
    return all_organisations()[place].name + (f"-{again + 1}" if again else "")


class _Draw:
    """Draws facts without repetition: each name and each real thing is used once."""

    def __init__(self, options: English, source: random.Random) -> None:
        self.options, self.source = options, source
        self.stems = invented_words()
        source.shuffle(self.stems)
        self.real = {each.name: sorted(each.changed.believed) for each in all_organisations()}
        for names in self.real.values():
            source.shuffle(names)

    def facts(self, count: int, owners: Sequence[Organisation]) -> tuple[EnglishFact, ...]:
        """`count` facts of these organisations and all of their kinds in turn."""
        changed = round(self.options.changed * count)
        kinds = [
            kind for group in zip(*(each.kinds for each in owners), strict=True) for kind in group
        ]
        return (
            *(self._real(owners[i % len(owners)]) for i in range(changed)),
            *(self._invented(kinds[i % len(kinds)]) for i in range(count - changed)),
        )

    def _invented(self, kind: FactKind) -> EnglishFact:
        if not self.stems:
            raise UserError(
                f"english.clients = {self.options.clients} with english.facts = "
                f"{self.options.facts} each are more facts than there are names "
                f"({len(invented_words())}): lower one of them"
            )
        name = kind.name.format(stem=self.stems.pop())
        return EnglishFact(kind, name, self.source.choice(kind.values.choices))

    def _real(self, owner: Organisation) -> EnglishFact:
        kind, left = owner.changed, self.real[owner.name]
        if not left:
            raise UserError(
                f"english.changed = {self.options.changed} asks for more than the "
                f"{len(kind.believed)} changed facts that there are for organisations like the "
                f"{owner.name}: lower it, english.facts or english.clients"
            )
        name = left.pop()
        believed = kind.believed[name]
        others = [value for value in kind.values.choices if value != believed]
        return EnglishFact(kind, name, self.source.choice(others), believed)


def invented_words() -> list[str]:
    """2,400 words that look like names and, it is hoped, are none: "Balarbar", "Quenildin"."""
    starts = "Bal Cer Dov Fen Gor Hal Kel Lom Mar Nev Ost Pel Quen Rus Sar Tor Ulm Vel Wim Zan"
    middles = "a e i o ar en il or an us"
    ends = "bar din fel gan hol lund mer nor rik sen tal vex"
    return [
        start + middle + end
        for start in starts.split()
        for middle in middles.split()
        for end in ends.split()
    ]
