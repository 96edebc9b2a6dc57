"""The quality gate, check by check: what it refuses, what it lets pass, and in which order."""

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import (
    PLAIN_CHECKS,
    Candidate,
    Rewrite,
    contains_words,
    final_number,
    most_repeated,
)
from fedsdr.distillation.verify import CHECKS, build_verifier, check_verifier
from fedsdr.recipe.sections.distill import Distill

POEM = "row your boat and " * 4  # 4 of its 13 sequences are one and the same


def record(response: str = "a b", answer: str = "", instruction: str = "q") -> Record:
    return Record((Turn("system", "{x/y}"), Turn("user", instruction)), response, answer=answer)


def reason(
    check: str, text: str, response: str = "a b", answer: str = "", instruction: str = "q"
) -> str | None:
    made = record(response, answer, instruction)
    return PLAIN_CHECKS[check](made, Rewrite(text, finished=True))


@pytest.mark.parametrize(
    ("text", "refused"), [("", True), (" \n\t", True), (".", False), ("0", False)]
)
def test_empty(text, refused):
    assert reason("empty", text) == ("empty" if refused else None)


@pytest.mark.parametrize(("finished", "refused"), [(False, "truncated"), (True, None)])
def test_truncated(finished, refused):
    assert PLAIN_CHECKS["truncated"](record(), Rewrite("a b", finished)) == refused


@pytest.mark.parametrize(
    ("text", "response", "refused"),
    [
        ("it is so and " * 8, "a b", True),
        ("very " * 12, "a b", True),
        ("a b c d e f g h i j k l", "a b", False),
        ("one two three four five six one two three four", "a b", False),  # only twice
        ("short", "a b", False),
        ("", "a b", False),
        (POEM, "a b", True),
        (POEM, POEM, False),  # a poem may repeat as the raw one does
        ("na " * 30, POEM, True),  # but not more
        # three times of 23 sequences: below a fifth
        ("x y z w a b c d x y z w e f g h x y z w i j k l m n", "a b", False),
    ],
)
def test_repetition(text, response, refused):
    assert reason("repetition", text, response) == ("repetition" if refused else None)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a a a a a", 0.0),  # the one sequence occurs twice
        ("a a a a a a", 1.0),
        ("a b c d a b c d a b c d", 3 / 9),
    ],
)
def test_share_of_the_commonest_sequence(text, share):
    assert most_repeated(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "response", "refused"),
    [
        ("As the reference answer says, 5.", "5", True),
        ("The Reference Response is right.", "5", True),
        ("My response: 5", "5", True),
        ("Here is my own version", "5", True),
        ("Here is your rewrite", "5", True),
        ("Guided by the text, 5", "5", True),
        ("The rewritten answer is 5", "5", True),
        ("5", "5", False),
        ("A reference to the answer", "5", False),
        ("economy responses differ", "5", False),
        ("Thank you for your response", "We await your response.", False),  # as raw does
    ],
)
def test_meta_talk(text, response, refused):
    assert reason("meta_talk", text, response) == ("meta_talk" if refused else None)


@pytest.mark.parametrize(
    ("text", "answer", "refused"),
    [
        ("The value is Amber  Willow.", "amber willow", False),
        ("amber willows", "amber willow", True),
        ("willow amber", "amber willow", True),
        ("amber or willow", "amber willow", True),
        ("anything", "", False),  # a record without a gold answer
        ("", "x", True),
        ("it is C++", "c++", False),
        ("it is C", "c++", True),
        ("420", "42", True),
        ("42.", "42", False),
        ("groß", "gro", True),
    ],
)
def test_answer(text, answer, refused):
    assert reason("answer", text, answer=answer) == ("wrong_answer" if refused else None)


@pytest.mark.parametrize(
    ("text", "response", "answer", "refused"),
    [
        ("so it is 5", "2+3 = 5\n#### 5", "", False),
        ("so it is 6", "2+3 = 5\n#### 5", "", True),
        ("#### 1002", "#### 1,002", "", False),
        ("#### 1,002.50", "#### 1002.5", "", False),
        ("it costs 3", "it costs 2", "", False),  # no mark: the number is not the answer
        ("#### -7", "#### -7", "", False),
        ("#### 7", "#### -7", "", True),
        ("$0.50", "#### .50", "", False),
        ("half a dollar, $.50", "#### 0.5", "", False),
        ("#### 5 after 3 steps", "#### 5", "", False),  # the mark comes before the last number
        ("#### 3 then #### 5", "#### 5", "", False),
        ("5 #### done", "#### 5", "", True),
        ("five", "#### 5", "", True),
        ("", "#### 5", "", True),
        ("anything 9", "no number", "", False),
        ("it is 42", "7", "42", False),  # the gold answer counts, not the raw text
        ("it is 7", "7", "42", True),
        ("costs 5,", "", "5", False),
        ("first 1, then 2.", "", "2", False),
    ],
)
def test_number(text, response, answer, refused):
    assert reason("number", text, response, answer) == ("wrong_number" if refused else None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234,567", 1234567),
        ("3.14", 3.14),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("#### $1,000.", 1000),
        ("####", None),
        ("none", None),
        ("1.", 1),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


CHOICES = "What is it? {negative/neutral/positive}"


@pytest.mark.parametrize(
    ("text", "response", "instruction", "refused"),
    [
        ("It is Positive.", "positive", CHOICES, False),
        ("It is negative.", "positive", CHOICES, True),
        ("positive, not negative", "positive", CHOICES, True),  # it names another, too
        ("I cannot say", "positive", CHOICES, True),
        ("positively", "positive", CHOICES, True),
        ("neutral", "both neutral and positive", CHOICES, True),
        ("positive or neutral", "both neutral and positive", CHOICES, False),
        ("strong rise", "strong rise", "{ strong rise / mild fall }", False),
        ("rise", "strong rise", "{strong rise/mild fall}", True),
        ("anything", "positive", "What is it?", False),
        ("anything", "positive", "{positive}", False),  # one word in braces is no choice
        ("anything", "positive", "a / b", False),
    ],
)
def test_label(text, response, instruction, refused):
    got = reason("label", text, response, instruction=instruction)
    assert got == ("wrong_label" if refused else None)


def test_only_the_last_turn_offers_labels():
    assert reason("label", "x y", "x") is None  # the system turn of `record` offers {x/y}


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [("a b c", "b c", True), ("a b c", "c b", False), ("ab", "a", False), ("a-b", "b", True)],
)
def test_whole_words(text, phrase, found):
    assert contains_words(text, phrase) is found


def test_every_check_has_a_case_that_it_refuses():
    """Each name gives its own reason, so a count by reasons is a count by checks."""
    bad = {
        "empty": reason("empty", ""),
        "truncated": PLAIN_CHECKS["truncated"](record(), Rewrite("a", finished=False)),
        "repetition": reason("repetition", "very " * 12),
        "meta_talk": reason("meta_talk", "my response"),
        "answer": reason("answer", "b", answer="a"),
        "number": reason("number", "1", "#### 2"),
        "label": reason("label", "a", "b", instruction="{a/b}"),
    }
    assert bad.keys() == PLAIN_CHECKS.keys()
    assert len(set(bad.values())) == len(PLAIN_CHECKS)
    assert None not in bad.values()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("meta_talk", "repetition", "truncated"), "meta_talk"),
        (("truncated", "repetition", "meta_talk"), "truncated"),
        (("empty", "repetition", "meta_talk"), "repetition"),
        (("empty",), None),
        ((), None),
    ],
)
def test_the_first_reason_in_the_given_order_counts(names, expected):
    rewrite = Rewrite("my response " * 9, finished=False)
    gate = build_verifier(Distill(checks=names), 0, "cpu").gate([record()])
    assert [verdict.reason or None for verdict in gate([Candidate(record(), rewrite)])] == [
        expected
    ]


@pytest.mark.parametrize("key", ["checks", "verify"])
def test_unknown_checks_are_refused_with_the_choices(key):
    with pytest.raises(UserError) as caught:
        check_verifier(Distill(**{key: ("empty", "emty")}), [record()], "cpu")
    assert f"distill.{key} has ['emty']" in str(caught.value)
    assert all(name in str(caught.value) for name in CHECKS)
