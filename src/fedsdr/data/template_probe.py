"""A probe at load: what would be learnt, against the template's own rendering of conversations."""

from itertools import product
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat, TemplateRefusalError

PROBE_SYSTEM: Final = (Turn("system", "Answer in one sentence."),)
PROBE_QUESTION: Final = (Turn("user", "What is  the rate,\nin summer?"),)
PROBE_ANSWER: Final = "It is, Ms. O'Neil: 3.5\u00a0% of \u00e9t\u00e9.\n\n- No 2, then"
SHOWN: Final = 60  # characters of a text in an error


def check_template(chat: ChatFormat) -> None:
    """Raise `UserError` unless prompts and responses are what the template itself writes, for
    conversations of one and two rounds, with and without a system turn.

    Shapes of conversations that the template refuses are left to the records that have them; a
    question and its answer must be possible.
    """
    chat.conversation_text(PROBE_QUESTION, PROBE_ANSWER)
    for rounds, system in product((1, 2), (False, True)):
        turns = (
            *PROBE_SYSTEM[: int(system)],
            *((*PROBE_QUESTION, Turn("assistant", PROBE_ANSWER)) * rounds)[:-1],
        )
        try:
            asked, whole = chat.prompt_text(turns), chat.conversation_text(turns, PROBE_ANSWER)
        except TemplateRefusalError:
            continue
        _check_text(chat, asked, whole)
        if whole.startswith(asked):
            _check_ids(chat, turns, whole)


def _check_text(chat: ChatFormat, asked: str, whole: str) -> None:
    learnt = asked + chat.response_text(PROBE_ANSWER)
    same = whole.startswith(learnt) or _without_thought(chat, whole).startswith(
        _without_thought(chat, learnt)
    )
    if not chat.fits_answers or not same:
        raise UserError(
            f"the chat template ({chat.source}) asks for an answer with "
            f"{asked[-SHOWN:]!r}, and writes a conversation with its answer as "
            f"{whole[-2 * SHOWN :]!r}: what is learnt would not be what is asked, so mend the "
            "template (add_generation_prompt), or set model.template to another one"
        )


def _check_ids(chat: ChatFormat, turns: tuple[Turn, ...], whole: str) -> None:
    """Ids may be cut at other places than in the whole, but stand for the same text."""
    *learnt, end = [*chat.prompt_ids(turns), *chat.response_ids(PROBE_ANSWER)]
    text, wanted = _decode(chat, learnt), _decode(chat, chat.control.encode(whole))
    if end != chat.end_of_turn or not wanted.startswith(text):
        raise UserError(
            f"the tokenizer reads the chat template's ({chat.source}) {wanted[-2 * SHOWN :]!r} as "
            f"{text[-2 * SHOWN :]!r} where prompt and answer are apart: set model.template to one "
            "whose prompts end in a line break or a control token"
        )


def _decode(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _without_thought(chat: ChatFormat, text: str) -> str:
    """A text's characters without empty thoughts, which some templates leave out of history."""
    return "".join(chat.marks.empty.sub("", text).split())
