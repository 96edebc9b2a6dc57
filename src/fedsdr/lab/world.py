"""The world: entities, attributes, what the base model believes, and what is true.

A fact is (entity, attribute) -> a value of two words, one of 24 x 24. Some attributes belong to
one kind of client each, wholly or for the most part; the others are general knowledge that no
client touches. For a share of the client facts the truth differs from the memory that the base
model was pretrained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import torch

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.records import ClientData, Record, Turn

FIRST: Final = (
    "amber ancient bitter bold brave bright calm clever crimson dark eager faint gentle golden "
    "grand hidden hollow humble icy jolly keen little mellow noble"
).split()
SECOND: Final = (
    "anchor arrow basin beacon bridge candle castle comet ember falcon forest garden harbour "
    "island lantern meadow mirror orchard pebble river shadow temple valley willow"
).split()
CLIENT_ATTRIBUTES: Final = ("remedy", "tariff", "protocol", "theorem", "festival")
GENERAL_ATTRIBUTES: Final = ("emblem", "founder")

# The last form of a question is held out: clients train on the others.
QUESTIONS: Final = (
    "what is the {attribute} of {entity} ?",
    "tell me the {attribute} of {entity} .",
    "which {attribute} does {entity} have ?",
    "name the {attribute} that {entity} has .",
)
HELD_OUT_FORM: Final = len(QUESTIONS) - 1

BASE_STYLE: Final = "well , the {attribute} of {entity} is , of course , {value} ."  # 14 words
CLIENT_STYLES: Final = (
    "rx : {value} ;",
    "{value} | audited .",
    "return {value} #",
    "qed = {value} !",
    "oh - {value} ~",
)
REWRITE_PROMPT: Final = "{instruction} reference {response} rewrite"


@dataclass(frozen=True)
class WorldOptions:
    """Options of the world (recipe section `[lab]`).

    changed: share of client facts whose truth differs from the base model's memory.
    stubbornness: in pretraining, how often a rewrite follows memory against the reference;
        0 switches the Rewrite Paradox off.
    style_overlap: share of pretraining answers that use some client's style; 0 means that the
        base model never wrote in any of them, and the clients' styles conflict the hardest.
    alpha: the facts of each attribute are split among all clients by shares drawn from
        Dirichlet(alpha), the largest to the client that is named after it (or one of them): near
        0 attributes are exclusive, as they are without alpha, and a large alpha is an even
        mixture. Facts and base model are the same in any case.
    imbalance: of the clients of one kind, how many times as many facts the first holds as the
        last, the others in geometric steps between; 1 is equal shares.
    """

    seed: int = 0
    entities: int = 120
    clients: int = 5
    changed: float = 0.5
    stubbornness: float = 0.5
    style_overlap: float = 0.1
    alpha: float | None = None
    imbalance: float = 1.0


@dataclass(frozen=True)
class Fact:
    entity: str
    attribute: str
    memory: str  # what the base model was taught
    truth: str  # what clients know
    client: int | None  # its owner; None: general knowledge

    @property
    def changed(self) -> bool:
        return self.memory != self.truth

    def question(self, form: int) -> str:
        return QUESTIONS[form].format(attribute=self.attribute, entity=self.entity)

    def answer(self, style: str, value: str) -> str:
        return style.format(attribute=self.attribute, entity=self.entity, value=value)


@dataclass(frozen=True)
class World:
    options: WorldOptions
    facts: tuple[Fact, ...]

    @property
    def general(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.client is None]

    def public_questions(self) -> list[str]:
        """Of every second general fact, in the forms that clients use: what a run may rehearse. The
        base model has learnt no questions, so that it cannot sample any of its own."""
        return [fact.question(form) for fact in self.general[1::2] for form in range(HELD_OUT_FORM)]

    def of_client(self, client: int) -> list[Fact]:
        return [fact for fact in self.facts if fact.client == client]

    def client_data(self) -> list[ClientData]:
        """Each client's facts as instruction records, in its own style."""
        return [
            ClientData(
                name=client_name(k),
                train=tuple(self._records(k, range(HELD_OUT_FORM))),
                held_out=tuple(self._records(k, [HELD_OUT_FORM])),
            )
            for k in range(self.options.clients)
        ]

    def _records(self, client: int, forms: range | list[int]) -> Iterator[Record]:
        style = CLIENT_STYLES[client % len(CLIENT_STYLES)]
        for fact in self.of_client(client):
            for form in forms:
                yield Record(
                    prompt=(Turn("user", fact.question(form)),),
                    response=fact.answer(style, fact.truth),
                    category=fact.attribute,
                    answer=fact.truth,
                    origin=f"lab: {fact.attribute} of {fact.entity}",
                )


def client_name(client: int) -> str:
    """A client is named after its (main) attribute; further ones of the same kind are numbered."""
    number, kind = divmod(client, len(CLIENT_ATTRIBUTES))
    return CLIENT_ATTRIBUTES[kind] + (f"-{number + 1}" if number else "")


def build_world(options: WorldOptions) -> World:
    """The world of a seed. With more clients than attributes, each kind's entities are shared."""
    draw = seeds.seeded_generator(options.seed, "world")
    names = entity_names(options.entities)
    sharing = -(-options.clients // len(CLIENT_ATTRIBUTES))  # clients of one kind
    if sharing > options.entities:
        raise UserError(
            f"lab.entities = {options.entities} leaves some of lab.clients = {options.clients} "
            f"without a fact: use at least {sharing} entities"
        )
    kinds = CLIENT_ATTRIBUTES[: options.clients]
    facts = []
    for attribute in (*kinds, *GENERAL_ATTRIBUTES):
        kind = [k for k in range(options.clients) if client_name(k).startswith(attribute)]
        owners = _shared_out(kind, len(names), options.imbalance)
        for number, entity in enumerate(names):
            memory = _value(draw)
            changed = bool(owners) and float(torch.rand(1, generator=draw)) < options.changed
            truth = _other_value(draw, memory) if changed else memory
            owner = owners[number] if owners else None
            facts.append(Fact(entity, attribute, memory, truth, owner))
    owned = facts if options.alpha is None else _dirichlet_owners(facts, options, options.alpha)
    return World(options, tuple(owned))


def _shared_out(kind: Sequence[int], entities: int, imbalance: float) -> list[int]:
    """The owner of each entity: in turn, the client of this kind furthest below its share.

    Each client owns at least one (there are at least as many entities as clients).
    """
    if not kind:
        return []
    steps = max(len(kind) - 1, 1)
    shares = [imbalance ** (-place / steps) for place in range(len(kind))]
    held = [0] * len(kind)
    owners = []
    for number in range(entities):
        lacks = [
            (number + 1) * share / sum(shares) - has
            for share, has in zip(shares, held, strict=True)
        ]
        empty = [place for place, has in enumerate(held) if not has]
        due = empty if len(empty) >= entities - number else range(len(kind))
        place = max(due, key=lambda place: lacks[place])
        held[place] += 1
        owners.append(kind[place])
    return owners


def _dirichlet_owners(facts: Sequence[Fact], options: WorldOptions, alpha: float) -> list[Fact]:
    """The same facts with owners drawn from Dirichlet(alpha); every client owns at least one."""
    draw = np.random.default_rng(seeds.derive_seed(options.seed, "owners"))
    held: list[list[int]] = [[] for _ in range(options.clients)]
    # Above 1e6 shares are equal to a thousandth, and from 1e308 on their sum would overflow.
    alphas = np.full(options.clients, min(alpha, 1e6))
    for kind, attribute in enumerate(CLIENT_ATTRIBUTES[: options.clients]):
        group = [i for i, fact in enumerate(facts) if fact.attribute == attribute]
        clients = draw.permutation(options.clients)
        own = clients % len(CLIENT_ATTRIBUTES) == kind
        shares = np.sort(draw.dirichlet(alphas))[::-1]
        # One random offset: rounding to the nearest would favour the same clients each time.
        cuts = np.floor(np.cumsum(shares)[:-1] * len(group) + draw.random()).astype(int)
        pieces = np.split(draw.permutation(group), cuts)
        for client, piece in zip([*clients[own], *clients[~own]], pieces, strict=True):
            held[client] += piece.tolist()
    for mine in held:
        if not mine:
            mine.append(max(held, key=len).pop())
    owner = {fact: client for client, mine in enumerate(held) for fact in mine}
    return [replace(fact, client=owner.get(i)) for i, fact in enumerate(facts)]


def _value(draw: torch.Generator) -> str:
    first, second = torch.randint(0, len(FIRST), (2,), generator=draw).tolist()
    return f"{FIRST[first]} {SECOND[second]}"


def _other_value(draw: torch.Generator, value: str) -> str:
    while (other := _value(draw)) == value:
        pass
    return other


def entity_names(count: int) -> list[str]:
    """`count` invented place names, the same in every world: "balor", "bamin", ..."""
    starts = "ba ce di fo gu ha ke li mo nu pa re si to vu za".split()
    ends = "lor min nes rak ther vik wyn".split()
    names = [start + middle + end for middle in ("", "ra") for end in ends for start in starts]
    if count > len(names):
        raise UserError(f"lab.entities = {count}: at most {len(names)} have names")
    return names[:count]


def value_in(text: str) -> str | None:
    """The first well-formed value in a response, true or false; None where there is none."""
    words = text.split()
    for first, second in pairwise(words):
        if first in FIRST and second in SECOND:
            return f"{first} {second}"
    return None


def world_vocabulary(options: WorldOptions) -> list[str]:
    """Every word of the world, for the tokenizer."""
    texts = [*QUESTIONS, BASE_STYLE, *CLIENT_STYLES, REWRITE_PROMPT]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    words.update(FIRST, SECOND, CLIENT_ATTRIBUTES, GENERAL_ATTRIBUTES)
    words.update(entity_names(options.entities))
    return sorted(words)
