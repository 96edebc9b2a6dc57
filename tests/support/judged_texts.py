"""One record, one rewrite and one check of the quality gate."""

from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.verify import PLAIN_CHECKS


def asked_record(response: str = "a b", answer: str = "", instruction: str = "q") -> Record:
    """A record whose system turn offers labels, too: only its last turn counts."""
    return Record((Turn("system", "{x/y}"), Turn("user", instruction)), response, answer=answer)


def refusal_reason(
    check: str, text: str, response: str = "a b", answer: str = "", instruction: str = "q"
) -> str | None:
    """Why the check refuses the finished rewrite; None where it passes."""
    record = asked_record(response, answer, instruction)
    return PLAIN_CHECKS[check](record, Rewrite(text, finished=True))
