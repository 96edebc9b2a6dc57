"""Conversations whose texts are marks, to see what of a conversation a template writes."""

import json
from typing import Final

from fedsdr.data.records import Turn

SENTINEL: Final = "Turn number "  # a text that no template has of its own


def mark_conversation(
    turns: tuple[Turn, ...], tools: str
) -> tuple[tuple[Turn, ...], str, dict[str, str]]:
    """The turns and tools with marks that no template has of its own, for texts and for names of
    functions; and mark -> what it stands for, in words."""
    marks: dict[str, str] = {}
    marked = []
    for place, turn in enumerate(turns):
        extra, text = json.loads(turn.extra or "{}"), turn.text
        for number, call in enumerate(turn.calls):
            name = f"function_{place}_{number}"
            marks[name] = "calls of tools"
            extra["tool_calls"][number] = call | {"function": call["function"] | {"name": name}}
        if text or not turn.calls:
            text = f"{SENTINEL}{place}."
            marks[text] = said_by(turn.role)
        marked.append(Turn(turn.role, text, json.dumps(extra)))
    listed = json.loads(tools) if tools else []
    for number, tool in enumerate(listed):
        name = f"tool_number_{number}"
        marks[name] = "the list of tools"
        listed[number] = tool | {"function": tool["function"] | {"name": name}}
    return tuple(marked), json.dumps(listed) if listed else "", marks


def said_by(role: str) -> str:
    """What is missing where a text of this role is, in words."""
    return f"what the {role} says"
