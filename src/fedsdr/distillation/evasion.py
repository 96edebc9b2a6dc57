"""Rewrites that hold nothing of an answer: refusals, requests for the question, talk about the
assistant, and the question said again. What the raw response says that its prompt does not is what
an answer is known by."""

import re
from collections.abc import Iterator
from typing import Final

from fedsdr.data.records import Record
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.phrases import ASSISTANT_TOPICS, COURTESIES, NO_ANSWER, new_phrase
from fedsdr.distillation.support import content_terms

# What surrounds a question that is repeated: "the answer to the question is:".
_FRAME: Final = frozenset(
    "answer answers asked asking correct example following instruction question questions request "
    "response sentence statement states task".split()
)
_SENTENCE: Final = re.compile(r"[^.?!\n]+\??")
_KEPT: Final = 0.2  # of the raw response's own words, the least that an answer has


def no_answer(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite waits for a question; or it declines, apologises or speaks of the assistant, and
    its other sentences hold less than a fifth of the raw response's own words. What the raw
    response does, too, is no fault."""
    prompt = "\n".join(turn.text for turn in record.prompt)
    text, raw = rewrite.text, record.response
    if new_phrase(NO_ANSWER, text, raw):
        return "no_answer"
    sentences = _SENTENCE.findall(text)
    other = [
        sentence
        for sentence in sentences
        if not new_phrase(COURTESIES, sentence, raw)
        and not new_phrase(ASSISTANT_TOPICS, sentence, raw, prompt)
    ]
    if len(other) == len(sentences):
        return None
    said = content_terms(raw)
    own = said - content_terms(prompt) or said
    kept = own & content_terms("\n".join(other))
    return "no_answer" if len(kept) < max(1, _KEPT * len(own)) else None


def only_echoes(record: Record, rewrite: Rewrite) -> str | None:
    """Every content word of the rewrite is the instruction's, they make up half of the instruction
    or of a question in it, and the raw response has words of its own that the rewrite lacks.

    So labels and passages that the instruction holds may be answers. Stop words are English.
    """
    asked, said = content_terms(record.instruction), content_terms(rewrite.text) - _FRAME
    own = content_terms(record.response) - asked
    if not said or not own or not said <= asked:
        return None
    echoes = any(
        terms and 2 * len(said & terms) >= len(terms) and said <= terms
        for terms in _asked_terms(record.instruction)
    )
    return "echo" if echoes else None


def _asked_terms(instruction: str) -> Iterator[set[str]]:
    """The content words of the instruction, and of each question in it."""
    yield content_terms(instruction)
    for sentence in _SENTENCE.findall(instruction):
        if sentence.endswith("?"):
            yield content_terms(sentence)
