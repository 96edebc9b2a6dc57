"""Thoughts: what some models write before they answer, as between <think> and </think>.

Their templates have a switch, `enable_thinking` (Qwen3, SmolLM3) or `thinking` (Granite,
DeepSeek-V3.1), that a caller may set. Here it is set in the template itself, so that prompts are
the same wherever the template is rendered: in a run, by lm-evaluation-harness, in an export.
"""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

SWITCHES: Final = ("enable_thinking", "thinking")
PROBE_THOUGHT: Final = "Thought number 1."  # texts that no template has of its own
PLAIN_ANSWER: Final = "Answer number 1."


class Thought(NamedTuple):
    """The thought that a text begins with: its first mark, what is between its marks, and its last
    mark, each mark with the white space outside of it; and the text after it."""

    opens: str
    inner: str
    closes: str
    answer: str

    def __bool__(self) -> bool:
        return bool(self.opens)


@dataclass(frozen=True)
class ThoughtMarks:
    """What is written before and after a thought, with white space."""

    before: str
    after: str

    @property
    def opens(self) -> str:
        return self.before.strip()

    @property
    def closes(self) -> str:
        return self.after.strip()

    @cached_property
    def empty(self) -> re.Pattern[str]:
        """An empty thought, or the end of an open one, with white space around."""
        return re.compile(rf"\s*({re.escape(self.opens)}\s*)?{re.escape(self.closes)}\s*")

    def is_open(self, text: str) -> bool:
        """Whether a text ends in the middle of a thought."""
        return text.rfind(self.opens) > text.rfind(self.closes)

    def closing_of(self, prompt: str) -> str:
        """What closes the thought that a prompt ends in, without a word of thought."""
        apart = self.after.startswith("\n") and not prompt.endswith("\n")
        return f"\n{self.after}" if apart else self.after

    def rest_of(self, prompt: str, whole: str) -> str | None:
        """What is to be learnt after `prompt`, where the template writes the conversation with its
        answer as `whole`; None where that does not begin with the prompt.

        A prompt may end in a thought that the whole lacks (DeepSeek-R1's), or has empty.
        """
        if whole.startswith(prompt):
            return whole.removeprefix(prompt)
        opens, closes = re.escape(self.opens), re.escape(self.closes)
        block = re.search(rf"{opens}\s*({closes}\s*)?$", prompt)
        if block is None or not whole.startswith(prompt[: block.start()]):
            return None
        rest = whole[block.start() :]
        thought = self.split(rest)
        if block[1]:  # closed already
            return thought.answer
        if thought:
            return rest.lstrip().removeprefix(self.opens)
        return rest if rest.lstrip().startswith(self.closes) else self.closing_of(prompt) + rest

    def with_closed_thought(self, template: str, prompt: str) -> str:
        """The template, whose `prompt` ends in an open thought, closing it at once."""
        whole = template.removesuffix("\n")  # as jinja does at a template's end
        closing = self.closing_of(prompt)
        return f"{whole}{{% if add_generation_prompt %}}{{{{ {closing!r} }}}}{{% endif %}}"

    def with_thought(self, written: str, frame: str, thought: str, opened: bool) -> str:
        """An answer with a thought in place of the empty one that its template may have written.

        frame: what the template writes before answers. opened: whether the prompt has opened the
        thought.
        """
        answer = self.empty.sub("", written, count=1)
        if self.after.endswith(frame):
            answer = answer.removeprefix(frame)
        return f"{'' if opened else self.before}{thought.strip()}{self.after}{answer}"

    def split(self, text: str) -> Thought:
        """The thought that a text begins with; an empty `Thought` and the text without one."""
        opens, closes = re.escape(self.opens), re.escape(self.closes)
        found = re.match(rf"(\s*{opens})(.*?)({closes}\s*)", text, re.DOTALL)
        if found is None:
            return Thought("", "", "", text)
        return Thought(found[1], found[2], found[3], text[found.end() :])


def _on_lines(opens: str, closes: str) -> ThoughtMarks:
    return ThoughtMarks(f"{opens}\n", f"\n{closes}\n\n")


HARMONY: Final = ThoughtMarks(
    "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
)
# Of public models, for templates that do not say where a thought goes; the first is the commonest.
KNOWN_MARKS: Final = (
    _on_lines("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3, GLM, Phi-4
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    HARMONY,  # gpt-oss
    ThoughtMarks("<|channel>thought\n", "<channel|>"),  # Gemma 4
    _on_lines("<thought>", "</thought>"),  # EXAONE Deep
    _on_lines("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ThoughtMarks("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
MARK_NAMES: Final = tuple(name for each in KNOWN_MARKS for name in (each.opens, each.closes))

Render = Callable[[Mapping[str, Any] | None], str]


def find_marks(render: Render, template: str) -> ThoughtMarks | None:
    """The marks of a template's thoughts, by how it writes a message that has one, or else by
    which known ones stand in it; None where nothing shows that it knows any.

    render: a short conversation by the template, with an assistant's message as its end or, for
    None, with a prompt for one.
    """
    text = {"role": "assistant", "content": PLAIN_ANSWER}
    blocks = [
        {"type": "thinking", "thinking": PROBE_THOUGHT},
        {"type": "text", "text": PLAIN_ANSWER},
    ]
    for message in (
        text | {"reasoning_content": PROBE_THOUGHT},
        text | {"thinking": PROBE_THOUGHT},
        text | {"content": blocks},
    ):
        with suppress(Exception):  # what a template raises is its author's choice
            if marks := _marks_between(render(None), render(message)):
                return marks
    return next((each for each in KNOWN_MARKS if each.opens in template), None)


def usual_marks(tokens: Collection[str]) -> ThoughtMarks:
    """The marks of a model whose template knows no thoughts: those that are tokens, or <think>."""
    own = (each for each in KNOWN_MARKS if each.opens in tokens and each.closes in tokens)
    return next(own, KNOWN_MARKS[0])


def _marks_between(prompt: str, whole: str) -> ThoughtMarks | None:
    """The marks around the probe's thought, where a template writes it after its prompt."""
    start, thought, rest = whole.partition(PROBE_THOUGHT)
    after, answer, _ = rest.partition(PLAIN_ANSWER)
    if not (thought and answer and start.startswith(prompt)):
        return None
    marks = ThoughtMarks(start.removeprefix(prompt), after)
    dumped = not {"'", '"'}.isdisjoint(marks.before + after)  # the message as JSON or Python's
    return marks if marks.opens and marks.closes and not dumped else None


def has_switch(template: str) -> bool:
    """Whether a caller of a template may set whether the model is to think."""
    return bool(_switches(template))


def with_thinking(template: str, on: bool) -> str:
    """The template with its switch set, for callers that leave it open."""
    value = "true" if on else "false"
    setting = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}\n"
        for name in _switches(template)
    )
    return template if template.startswith(setting) else setting + template


def split_thought(text: str, *own: ThoughtMarks) -> Thought:
    """The thought that a text begins with, by a template's own marks or by any that are known."""
    found = (thought for marks in (*own, *KNOWN_MARKS) if (thought := marks.split(text)))
    return next(found, Thought("", "", "", text))


def with_first_thought(thought: str, answer: str) -> str:
    """A text that begins with a thought, as `split_thought` finds it."""
    marks = KNOWN_MARKS[0]
    return f"{marks.before}{thought.strip()}{marks.after}{answer}"


def _switches(template: str) -> list[str]:
    """Variables of these names; message.thinking and 'thinking' are none."""
    return [name for name in SWITCHES if re.search(rf"(?<![\w.'\"]){name}(?![\w'\"])", template)]
