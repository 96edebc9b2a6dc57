"""What a chat template writes around an answer, read off a short conversation."""

from typing import Final, NamedTuple

from fedsdr.data.literal import ControlTokens
from fedsdr.data.thinking import ThoughtMarks

SHORT_ANSWER: Final = "Yes"


class Frame(NamedTuple):
    """What a template writes around an answer.

    prompt: of the conversation without it. before: between prompt and answer. after: between the
    answer and `end`, the token that ends the turn. rest: all that follows the answer. fits: whether
    the template begins the conversation with its answer as it does the prompt. lead: what responses
    are tokenised after, so that they begin as in the template's rendering: SentencePiece puts a
    space before the first word of a text.
    """

    prompt: str
    before: str
    after: str
    rest: str
    end: int
    fits: bool
    lead: str


def answer_frame(control: ControlTokens, marks: ThoughtMarks, prompt: str, whole: str) -> Frame:
    """prompt, whole: a conversation before and with `SHORT_ANSWER`, as the template writes it."""
    found = marks.rest_of(prompt, whole)
    fits = found is not None and SHORT_ANSWER in found
    before, _, rest = (found if found and fits else whole).rpartition(SHORT_ANSWER)
    before = before if fits else ""
    ends = [i for i in control.encode(rest) if i in control.ids]
    end = int(ends[0] if ends else control.tokenizer.eos_token_id)
    after, mark, _ = rest.partition(control.tokenizer.convert_ids_to_tokens(end))
    after = after if mark else ""
    lead = _lead_of_answers(control, prompt, f"{before}{SHORT_ANSWER}{after}")
    return Frame(prompt, before, after, rest, end, fits, lead)


def _lead_of_answers(control: ControlTokens, prompt: str, written: str) -> str:
    """`Frame.lead`, where the template writes `written` after its prompt."""
    encode = control.encode
    start, whole = encode(prompt), encode(prompt + written)
    answer = whole[len(start) :]
    if whole[: len(start)] != start or SHORT_ANSWER not in control.tokenizer.decode(answer):
        return ""  # the answer is in one token with the end of the prompt
    candidates = ("", "\n", prompt)
    return next((each for each in candidates if encode(written, each) == answer), "")
