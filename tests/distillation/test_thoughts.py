"""Rewrites of models that think: no thought becomes a target, and thoughts are counted apart."""

from dataclasses import replace
from typing import Any

import pytest

from fedsdr.core.progress import Bar
from fedsdr.data.records import Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.data.thinking import KNOWN_MARKS
from fedsdr.distillation import rewrite
from fedsdr.distillation.cache import NoCache
from fedsdr.distillation.checks import Rewrite, leaked_thoughts
from fedsdr.distillation.pilot import extrapolate_sample, total_pilot
from fedsdr.distillation.rewrite import Rewritten, rewrite_records
from fedsdr.distillation.rewrite import summarise_rewrites as summary
from fedsdr.distillation.teacher import Teacher, rewriting_job
from fedsdr.distillation.verify import build_verifier
from fedsdr.recipe.sections.distill import Distill
from fedsdr.workflows.distill import describe_pilots
from support.thinking_templates import BRACKETS, CHANNELS, CLOSING, OPENING, OWN_MARKS
from support.written_tokenizers import CHATML, byte_level

RECORD = Record((Turn("user", "What is a bond?"),), "A loan to a firm or a state.")
SAID = "A bond is a loan to a firm or a state."


def rewritten(
    monkeypatch: pytest.MonkeyPatch, chat: ChatFormat, *texts: str, **options: Any
) -> Rewritten:
    """The record's outcome where the model writes these texts, attempt by attempt."""
    made = iter([*texts])

    def generate(model: Any, jobs: Any, stop: Any, temperature: float, rows: int) -> Any:
        encode = chat.tokenizer
        return [
            [*encode(next(made), add_special_tokens=False)["input_ids"], chat.end_of_turn]
            for _ in jobs
        ]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    given = Distill(attempts=len(texts), **options)
    gate = build_verifier(given, 0, "cpu").gate([RECORD])
    teacher = Teacher(None, chat, "weights", context=10**6)
    [done] = rewrite_records(teacher, [RECORD], given, NoCache(), 0, Bar(None, None), gate)
    return done


FORMATS = {
    "closing": ChatFormat(byte_level(CLOSING)),
    "closing, on": ChatFormat(byte_level(CLOSING), thinking="on"),
    "opening": ChatFormat(byte_level(OPENING)),
    "opening, on": ChatFormat(byte_level(OPENING), thinking="on"),
    "no thoughts": ChatFormat(byte_level(CHATML)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_stands_before_the_end_of_a_thought_is_cut(monkeypatch, name):
    chat = FORMATS[name]
    for thought in ("<think>\nThe reference says it is\n</think>\n\n", "It is so\n</think>\n\n"):
        done = rewritten(monkeypatch, chat, thought + SAID)
        assert (done.text, done.reason) == (SAID, "")
        count = len(chat.tokenizer(thought.strip(), add_special_tokens=False)["input_ids"])
        assert done.tried[0].thought == count
        assert done.tried[0].tokens > count + 10
        assert summary([done])["thought_tokens"] == count
        assert summary([done])["rewrite_words"] == len(SAID.split())


@pytest.mark.parametrize("name", FORMATS)
def test_a_thought_without_an_end_is_refused_for_what_it_is(monkeypatch, name):
    chat = FORMATS[name]
    done = rewritten(monkeypatch, chat, "<think>\nThe user asks for a bond. A loan.", checks=[])
    assert (done.text, done.reason) == (RECORD.response, "unclosed_thought")
    assert done.tried[0].text == ""
    again = rewritten(monkeypatch, chat, "<think>\nThe user", "hm</think>" + SAID)
    assert (again.text, again.reason, again.attempts) == (SAID, "", 2)


@pytest.mark.parametrize(
    ("template", "thought"),
    [(BRACKETS, "[THINK]The reference.[/THINK]"),
     (CHANNELS, "<|channel|>analysis<|message|>The reference.<|end|><|start|>assistant"
                "<|channel|>final<|message|>"),
     (OWN_MARKS, "(musing:) The reference. (:done)")],
    ids=["brackets", "channels", "own"],
)  # fmt: skip
def test_thoughts_between_other_marks_are_cut_from_rewrites(monkeypatch, template, thought):
    chat = ChatFormat(byte_level(template))
    done = rewritten(monkeypatch, chat, thought + SAID)
    assert (done.text, done.reason) == (SAID, "")
    count = len(chat.tokenizer(thought, add_special_tokens=False)["input_ids"])
    assert summary([done])["thought_tokens"] == count
    cut = rewritten(monkeypatch, chat, f"{chat.marks.opens} The user asks", checks=[])
    assert (cut.text, cut.reason) == (RECORD.response, "unclosed_thought")


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.opens)
def test_the_gate_refuses_a_mark_that_no_template_has_shown(marks):
    for text in (f"{marks.opens} The user asks. {SAID}", f"The user asks.{marks.closes} {SAID}"):
        assert leaked_thoughts(RECORD, Rewrite(text, finished=True)) == "thoughts"
        same = replace(RECORD, response=text)
        assert leaked_thoughts(same, Rewrite(text, finished=True)) is None


def test_a_text_after_a_prompt_that_opens_a_thought_is_no_rewrite(monkeypatch):
    done = rewritten(monkeypatch, FORMATS["opening, on"], SAID)
    assert done.reason == "unclosed_thought"
    assert rewritten(monkeypatch, FORMATS["opening"], SAID).text == SAID


def test_the_teacher_sees_the_reference_without_its_thought():
    record = replace(RECORD, response="<think>\nHm, bonds.\n</think>\n\nA loan.")
    for name in ("closing", "closing, on", "no thoughts"):
        job = rewriting_job(FORMATS[name], record, Distill(), 0, 0)
        asked = FORMATS[name].tokenizer.decode(job.prompt)
        assert "A loan." in asked
        assert "Hm, bonds." not in asked


def test_a_model_that_thinks_has_room_for_it():
    for name, more in (("closing", 0), ("closing, on", 70)):
        options = Distill(min_tokens=5, max_ratio=1.0, thinking_tokens=70)
        job = rewriting_job(FORMATS[name], RECORD, options, 0, 0)
        assert job.limit == len(FORMATS[name].response_ids(RECORD.response)) + more


def test_a_pilot_counts_thoughts_apart(monkeypatch):
    done = rewritten(monkeypatch, FORMATS["opening"], "<think>a</think>" + SAID)
    pilot = extrapolate_sample("anna", [done, done], records=10, seconds=1.0)
    assert pilot.thoughts == 10 * 3
    assert f"{pilot.tokens:.0f} tokens (30 of thoughts)" in describe_pilots([pilot])
    assert total_pilot([pilot, pilot]).thoughts == 60
    plain = rewritten(monkeypatch, FORMATS["opening"], SAID)
    assert "thoughts" not in describe_pilots([extrapolate_sample("anna", [plain], 1, 1.0)])
