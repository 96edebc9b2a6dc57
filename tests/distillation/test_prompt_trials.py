"""Prompts compared: counts by hand, the rule of the best, files of prompts and mistakes in them."""

import pytest
from scipy.stats import binom

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Verdict
from fedsdr.distillation.prompts import (
    FAULTS,
    PromptTrial,
    best_trial,
    check_prompts,
    count_trial,
    indistinct_trials,
    read_prompts,
    wrong_answer,
)
from fedsdr.distillation.rewrite import Attempt, Rewritten
from fedsdr.recipe.sections.prompts import shipped_prompts

PROMPT = "{instruction} {response}"


def outcome(text: str, *, raw: str = "It is 5 m", reason: str = "", finished: bool = True,
            answer: str = "", asked: str = "How long is it?") -> Rewritten:  # fmt: skip
    """A record after one attempt of three tokens."""
    record = Record((Turn("user", asked),), raw, answer=answer)
    tried = (Attempt(text, 3, Verdict(reason), finished),)
    return Rewritten(record, raw if reason else text, reason, 1, tried)


def trial(name: str, sound: str, tokens: int = 1) -> PromptTrial:
    """sound: "+" for a record with a sound rewrite, "-" for one without."""
    marks = tuple(mark == "+" for mark in sound)
    return PromptTrial(name, PROMPT, 0, marks, 0, {}, 0, 0, 0.0, tokens, 0.0)


def test_a_trial_is_counted_by_hand():
    rewrites = [
        outcome("The length is 5 m", answer="5 m"),  # sound
        outcome("The length is 7 m", answer="5 m"),  # wrong, and 7 is invented
        outcome("It  is 5 m"),  # unchanged
        outcome("I'm ready to help. What's the question?"),  # no answer, although accepted
        outcome("It is 5 m and 5 m and", reason="truncated", finished=False),
        Rewritten(Record((Turn("user", "long"),), "raw text here"), "raw text here", "too_long", 0),
    ]
    made = count_trial("mine", PROMPT, rewrites, seconds=2.5)
    assert (made.records, made.accepted, made.unchanged) == (6, 4, 1)
    assert made.sound == (True, False, False, False, False, False)
    assert made.faults == dict.fromkeys(FAULTS, 1)
    assert (made.wrong, made.checked) == (1, 2)
    assert made.words == (5 + 5 + 4 + 7) / 4
    assert (made.tokens, made.seconds) == (5 * 3, 2.5)


def test_a_prompt_that_nothing_passes_has_no_words():
    made = count_trial("mine", PROMPT, [outcome("", reason="empty")], 0.0)
    assert (made.accepted, made.words, made.wrong, made.checked) == (0, 0.0, 0, 0)


LABELS = "Positive or not? {negative/positive}"


@pytest.mark.parametrize(
    ("raw", "asked", "answer", "text", "wrong"),
    [
        ("5 m", "How long?", "5 m", "It is 5 m long.", False),
        ("5 m", "How long?", "5 m", "It is long.", True),
        ("5 m", "How long?", "", "It is long.", None),  # nothing says what is right
        ("2 + 3 = 5\n#### 5", "How much?", "", "2 and 3 are 5.", False),
        ("2 + 3 = 5\n#### 5", "How much?", "", "2 and 3 are 6.", True),
        ("positive", LABELS, "", "The news is positive.", False),
        ("positive", LABELS, "", "The news is negative.", True),
    ],
)
def test_wrong_is_what_misses_the_gold_answer_or_else_number_and_label(
    raw, asked, answer, text, wrong
):
    record = Record((Turn("user", asked),), raw, answer=answer)
    assert wrong_answer(record, text) is wrong


def test_the_best_has_the_most_sound_rewrites_then_the_fewest_tokens_then_comes_first():
    first, second, third = trial("a", "++-"), trial("b", "+++", 9), trial("c", "-++", 2)
    assert best_trial([first, second, third]).name == "b"
    assert best_trial([third, first]).name == "a"
    assert best_trial([first, trial("d", "++-")]).name == "a"


@pytest.mark.parametrize(("losses", "worse"), [(0, False), (5, False), (6, True)])
def test_what_is_shown_to_be_worse_is_mcnemars(losses, worse):
    """Six discordant records of one sign are needed: 2 / 2^6 < 5 % < 2 / 2^5."""
    assert (2 * binom.pmf(0, max(losses, 1), 0.5) < 0.05) == worse
    best = trial("best", "+" * 20)
    other = trial("other", "-" * losses + "+" * (20 - losses))
    assert indistinct_trials(best, [other, best]) == ([] if worse else [other])


# --- A user's own prompts


def test_a_file_of_toml_has_a_prompt_a_key_and_any_other_is_one(tmp_path):
    table, text = tmp_path / "mine.toml", tmp_path / "short.txt"
    table.write_text('a = "Say {instruction}: {response}"\nb = "sdft"\n', encoding="utf-8")
    text.write_text("\nSay {instruction}:\n{response}\n", encoding="utf-8")
    assert read_prompts(table) == {
        "a": "Say {instruction}: {response}", "b": shipped_prompts()["sdft"],
    }  # fmt: skip
    assert read_prompts(text) == {"short": "Say {instruction}:\n{response}"}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["cannot read the prompts", "mine.toml"]),
        (b"\xff", ["cannot read the prompts"]),
        (b"a = ", ["cannot read the prompts", "Invalid value"]),
        (b"# none", ["mine.toml has no prompt", 'name = "']),
        (b"a = 3", ["mine.toml: a is 3", 'write a = "a text"']),
        (b"[a]\ntext = '{instruction} {response}'", ["mine.toml: a is {'text'"]),
        (b"a = '{instruction}'", ["mine.toml: a = ", "must contain {response}"]),
        (b"a = '{instruction} {response} {x}'", ["mine.toml: a = ", "has {x}"]),
        (b"a = 'sdff'", ["mine.toml: a = 'sdff'", "no such prompt"]),
    ],
)
def test_mistakes_in_a_file(tmp_path, content, parts):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_a_mapping_is_checked_as_a_file_is():
    assert check_prompts({"a": PROMPT}, "prompts") == {"a": PROMPT}
    with pytest.raises(UserError, match=r"^prompts: a = 'x': no such prompt"):
        check_prompts({"a": "x"}, "prompts")
