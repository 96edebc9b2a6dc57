"""The quality gate, check by check: what it refuses, what it lets pass, and in which order."""
# ruff: noqa: RUF001

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import (
    Candidate,
    Rewrite,
    circling_share,
    most_repeated,
    repeated_share,
)
from fedsdr.distillation.verify import CHECKS, PLAIN_CHECKS, build_verifier, check_verifier
from fedsdr.recipe.sections.distill import Distill
from support.judged_texts import asked_record as record
from support.judged_texts import refusal_reason as reason

POEM = "row your boat and " * 4  # 4 of its 13 sequences are one and the same


@pytest.mark.parametrize(
    ("text", "response", "refused"),
    [
        ("", "a b", True),
        (" \n\t", "a b", True),
        ("...", "a b", True),
        ("...", "...", True),  # nothing is learnt from it
        ("0", "0", False),
        ("7", "12", False),  # a number for a number: whether it is right is for others to say
        ("12.", "There are 12.", False),
        ("13", "There are 12.", True),
        ("- 1 -", "There are 12.", True),
        ("貸し", "a b", False),
    ],
)
def test_empty(text, response, refused):
    assert reason("empty", text, response) == ("empty" if refused else None)


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
        ("A bond is a loan. A bond is a loan.", "a b", True),
        (
            "A bond is a loan to a firm. A bond is a loan to the state.",
            "a b",
            False,
        ),
        ("A b c d. A b c d.", "e f g h. e f g h.", False),  # as the raw response does
        ("loanloanloanloanloan", "a b", True),
        ("啊啊啊啊啊啊啊啊", "a b", True),
        ("债券是一种贷款债券是一种贷款债券是一种贷款债券是一种贷款债券是一种贷款", "a b", True),
        ("债券是发给公司或国家的一种贷款。债券是发给公司或国家的一种贷款。", "a b", True),
        ("债券是发给公司或国家的一种贷款，支付利息。", "a b", False),
        ("| a | b |\n|---|---|---|---|---|---|---|", "a b", False),  # the line of a table
        ("10000000000", "a b", False),
        ("haha, well: a bond is a loan to a firm", "a b", False),
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
    ("text", "share"),
    [("", 0.0), ("abcdefgh", 0.0), ("xababababab", 10 / 11), ("ab" * 4, 0.0), ("=" * 30, 0.0)],
)
def test_share_of_what_is_written_in_circles(text, share):
    """Five times in a row, with a letter in what is repeated."""
    assert circling_share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c d. e f. a b c d", 4 / 10),
        ("a b. a b. a b", 0.0),
        ("e f g h\nE F G H!", 0.5),
    ],
)
def test_share_of_sentences_that_were_written_before(text, share):
    """Sentences of four words or more, in any case."""
    assert repeated_share(text) == pytest.approx(share)


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
        ("The given response states that a bond is a loan.", "A loan.", True),
        ("Score: 9/10. Concise.", "A loan.", True),
        ("The answer is correct and concise.", "A loan.", True),
        ("Sure, here is a rewritten version: A bond is a loan.", "A loan.", True),
        ("Certainly! Let me put it this way: a loan.", "A loan.", True),
        ("Here's my attempt: a loan.", "A loan.", True),
        ("The answer to the given instruction is: a loan.", "A loan.", True),
        ("Rewrite the answer as a complete sentence.", "A loan.", True),
        ("Sure enough, the answer was a loan.", "A loan.", False),
        ("The answer to this question is a loan.", "A loan.", False),
        ("Here is the list: bonds, loans.", "A loan.", False),
        ("The correct answer is a loan.", "A loan.", False),
    ],
)
def test_meta_talk(text, response, refused):
    assert reason("meta_talk", text, response) == ("meta_talk" if refused else None)


@pytest.mark.parametrize(
    ("text", "response", "refused"),
    [
        ("<think>\nA definition.\n</think>\n\nA loan.", "A loan.", True),
        ("<think>\nA definition, so", "A loan.", True),  # never closed
        ("The user asks.\n</think>\n\nA loan.", "A loan.", True),  # opened by the template
        ("I think <b>so</b>.", "A loan.", False),
        ("Write <think> first.", "The tag is <think>.", False),
    ],
)
def test_thoughts(text, response, refused):
    assert reason("thoughts", text, response) == ("thoughts" if refused else None)


@pytest.mark.parametrize(
    ("text", "response", "refused"),
    [
        ("A loan.<|im_start|>user", "A loan.", True),
        ("A loan.</s>", "A loan.", True),
        ("A loan. [/INST]", "A loan.", True),
        ("A loan.\n\n### Instruction:\nWhat is a share?", "A loan.", True),
        ("A loan.\nUser: And a share?", "A loan.", True),
        ("**Assistant:** A loan.", "A loan.", True),
        ("A loan.\nQ: And a share?\nA: A part.", "A loan.", True),
        ("A: a loan", "A loan.", False),
        ("The user: a person who logs in.", "A loan.", False),
        ("x <b>y</b> | z", "A loan.", False),
        ("User: hello", "User: hi", False),
        ("## Instructions\nMix.", "Mix.", False),
    ],
)
def test_turns(text, response, refused):
    assert reason("turns", text, response) == ("turns" if refused else None)


BOND = ("What is a bond?", "A bond is a loan to a firm or a state. It pays interest.")
DEGENERATE = [
    "I'm sorry, but as an AI language model I cannot help with that.",
    "I'm ready to help. What's the question?",
    "What is a bond?",
    "Certainly! Here is my version: A bond is a loan to a firm.",
    "Eine Anleihe ist ein Kredit an eine Firma oder einen Staat. Sie zahlt Zinsen.",
    "Облигация - это заём.",
    "<think>\nA definition.\n</think>\nA bond is a loan.",
    "According to the given answer, a bond is a loan.",
    "A bond is a loan.\n### Instruction:\nWhat is a share?",
    "A bond is a loan.\nHuman: And a share?",
    "bond bond bond bond bond bond bond bond",
    "债券债券债券债券债券债券",
    "A bond is a loan to a firm. A bond is a loan to a firm.",
    "A bond is a loan.<|im_end|>",
    "Rating: 5. A good answer.",
    "...",
    "[Insert answer here]",
    "{response}",
    "Please provide the text that you would like me to rewrite.",
    "As a chatbot, I do not own bonds.",
    "In 1844, bonds were invented by John Hartwell.",
]


@pytest.mark.parametrize("text", DEGENERATE)
def test_the_default_gate_refuses_degenerate_texts(text):
    of = Record((Turn("user", BOND[0]),), BOND[1])
    gate = build_verifier(Distill(), 0, "cpu").gate([of])
    assert [bool(v.reason) for v in gate([Candidate(of, Rewrite(text, finished=True))])] == [True]


@pytest.mark.parametrize(
    "text",
    [
        BOND[1],
        "A bond is a loan.",
        "Bonds are loans to firms or states, and they pay interest.",
        "When you buy a bond, you lend money to a firm or a state, which pays you interest for it.",
        "- a loan to a firm or a state\n- it pays interest",
        "It is a loan, not a share: the firm (or the state) pays interest.",
    ],
)
def test_the_default_gate_accepts_answers(text):
    of = Record((Turn("user", BOND[0]),), BOND[1])
    gate = build_verifier(Distill(), 0, "cpu").gate([of])
    assert [v.reason for v in gate([Candidate(of, Rewrite(text, finished=True))])] == [""]


def test_gold_answers_are_checked_by_default_where_there_are_any():
    records = [
        record("#### 12", "12"),
        record("Lima.", "Lima"),
        record("yes", instruction="{yes/no}"),
    ]
    gate = build_verifier(Distill(), 0, "cpu").gate(records)
    for texts, reasons in (
        (["It is 12.", "Lima", "Yes."], ["", "", ""]),
        (["It is twelve or 21.", "Quito", "No."], ["invention", "wrong_answer", "wrong_label"]),
        (
            ["Many.", "not Lima", "Not yes."],
            ["wrong_number", "wrong_answer", "wrong_label"],
        ),
    ):
        found = gate([Candidate(r, Rewrite(t, True)) for r, t in zip(records, texts, strict=True)])
        assert [v.reason for v in found] == reasons


def test_every_check_has_a_case_that_it_refuses():
    """Each name gives its own reason, so a count by reasons is a count by checks."""
    bad = {
        "empty": reason("empty", ""),
        "truncated": PLAIN_CHECKS["truncated"](record(), Rewrite("a", finished=False)),
        "repetition": reason("repetition", "very " * 12),
        "meta_talk": reason("meta_talk", "my response"),
        "thoughts": reason("thoughts", "<think>"),
        "turns": reason("turns", "User: a"),
        "no_answer": reason("no_answer", "I'm sorry."),
        "echo": reason("echo", "debt", "a loan", instruction="what is debt?"),
        "language": reason("language", "нет"),
        "invention": reason("invention", "17"),
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
