"""Thoughts: what some models write between <think> and </think> before they answer.

Their templates have a switch, `enable_thinking` (Qwen3, SmolLM3) or `thinking` (Granite,
DeepSeek-V3.1), that a caller may set. Here it is set in the template itself, so that prompts are
the same wherever the template is rendered: in a run, by lm-evaluation-harness, in an export.
"""

import re
from typing import Final

OPENS: Final = "<think>"
CLOSES: Final = "</think>"
SWITCHES: Final = ("enable_thinking", "thinking")
CLOSED: Final = f"\n{CLOSES}\n\n"  # how an empty thought goes on that ends with a line break
LAST_THOUGHT: Final = re.compile(rf"{OPENS}\s*({CLOSES}\s*)?$")
EMPTY_THOUGHT: Final = re.compile(rf"\s*({OPENS}\s*)?{CLOSES}\s*")  # or the end of an open one
FIRST_THOUGHT: Final = re.compile(rf"\s*{OPENS}.*?{CLOSES}\s*", re.DOTALL)


def knows_thoughts(template: str) -> bool:
    """Whether a template writes thoughts, or has a switch for them."""
    return OPENS in template or bool(_switches(template))


def with_thinking(template: str, on: bool) -> str:
    """The template with its switch set, for callers that leave it open."""
    value = "true" if on else "false"
    setting = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}\n"
        for name in _switches(template)
    )
    return template if template.startswith(setting) else setting + template


def rest_of(prompt: str, whole: str) -> str | None:
    """What is to be learnt after `prompt`, where the template writes the conversation with its
    answer as `whole`; None where that does not begin with the prompt.

    A prompt may end in a thought that the whole lacks (DeepSeek-R1's), or has empty.
    """
    if whole.startswith(prompt):
        return whole.removeprefix(prompt)
    block = LAST_THOUGHT.search(prompt)
    if block is None or not whole.startswith(prompt[: block.start()]):
        return None
    rest = whole[block.start() :]
    thought, answer = split_thought(rest)
    if block[1]:  # closed already
        return answer
    if thought:
        return thought.lstrip().removeprefix(OPENS) + answer
    return rest if rest.lstrip().startswith(CLOSES) else closing_of(prompt) + rest


def with_closed_thought(template: str, prompt: str) -> str:
    """The template, whose `prompt` ends in an open thought, closing it at once."""
    whole = template.removesuffix("\n")  # as jinja does at a template's end
    return f"{whole}{{% if add_generation_prompt %}}{{{{ {closing_of(prompt)!r} }}}}{{% endif %}}"


def closing_of(prompt: str) -> str:
    """What closes the thought that a prompt ends in, without a word of thought."""
    return CLOSED if prompt.endswith("\n") else f"\n{CLOSED}"


def is_open(text: str) -> bool:
    """Whether a text ends in the middle of a thought."""
    return text.rfind(OPENS) > text.rfind(CLOSES)


def split_thought(text: str) -> tuple[str, str]:
    """The thought that a text begins with, with its marks and white space, and the rest."""
    found = FIRST_THOUGHT.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def thought_parts(thought: str) -> tuple[str, str, str]:
    """A thought of `split_thought` with its marks and what stands between them."""
    if not thought:
        return "", "", ""
    start, end = thought.index(OPENS) + len(OPENS), thought.rindex(CLOSES)
    return thought[:start], thought[start:end], thought[end:]


def with_thought(written: str, thought: str, opened: bool) -> str:
    """An answer with a thought in place of the empty one that its template may have written.

    opened: whether the prompt has opened the thought.
    """
    start = "" if opened else f"{OPENS}\n"
    return f"{start}{thought.strip()}{CLOSED}{EMPTY_THOUGHT.sub('', written, count=1)}"


def _switches(template: str) -> list[str]:
    """Variables of these names; message.thinking and 'thinking' are none."""
    return [name for name in SWITCHES if re.search(rf"(?<![\w.'\"]){name}(?![\w'\"])", template)]
