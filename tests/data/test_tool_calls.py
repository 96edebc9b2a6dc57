"""Conversations with tools: what the template makes of calls, results and the list of tools, held
against transformers' own rendering of the same messages."""

import json
from dataclasses import replace

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.encoding import Encoder
from fedsdr.data.records import ClientData, Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.diagnosis.data_quality import prompt_key
from support.tiny_models import CHAT, tokenizer

HEAD = "{% for m in messages %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}"
)
LIST = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
BODY = "<{{ m.role }}>{{ m.content or '' }}"
TAIL = "<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WHOLE = LIST + HEAD + BODY + CALLS + TAIL

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASKS = json.dumps({"tool_calls": [CALL]})
TURNS = (
    Turn("user", "How warm is the weather in Ulm?"),
    Turn("assistant", "", ASKS),
    Turn("tool", "9 degrees", json.dumps({"name": "weather", "tool_call_id": "1"})),
)
TOOLS = json.dumps([TOOL])
MESSAGES = [
    {"role": "user", "content": "How warm is the weather in Ulm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "9 degrees", "name": "weather", "tool_call_id": "1"},
]


def rendered(template: str, messages: list[dict], ask: bool = False) -> str:
    return tokenizer(template).apply_chat_template(
        messages, tools=[TOOL], add_generation_prompt=ask, tokenize=False
    )


def test_calls_results_and_tools_are_in_the_prompt():
    text = ChatFormat(tokenizer(WHOLE)).prompt_text(TURNS, TOOLS)
    assert text == rendered(WHOLE, MESSAGES, ask=True)
    assert '<call>weather{"town": "Ulm"}</call>' in text


def test_a_response_that_calls_is_learnt_as_the_template_writes_it():
    chat = ChatFormat(tokenizer(WHOLE))
    record = Record(TURNS[:1], "One moment.", tools=TOOLS, calls=json.dumps({"tool_calls": [CALL]}))
    written = chat.written_calls(record, record.response)
    assert written == 'One moment.<call>weather{"town": "Ulm"}</call>'
    said = {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}
    whole = rendered(WHOLE, [MESSAGES[0], said])
    assert whole == chat.prompt_text(record.prompt, TOOLS) + written + "<end>\n"
    example = chat.encode(record, record.response, 100)
    assert example is not None
    words = chat.tokenizer(written, add_special_tokens=False)
    assert example.response == (*words["input_ids"], chat.end_of_turn)


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (LIST + HEAD + BODY + TAIL, "calls of tools"),
        (HEAD + BODY + CALLS + TAIL, "the list of tools"),
        (LIST + HEAD + "{% if m.role != 'tool' %}" + BODY + CALLS + "{% endif %}" + TAIL,
         "what the tool says"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused_with_file_and_row(template, lost):
    """The name of the function stands in a question, too, where it is no call."""
    chat = ChatFormat(tokenizer(template))
    record = Record(TURNS, "9 degrees.", origin="a.jsonl:7", tools=TOOLS)
    with pytest.raises(UserError, match=rf"^a.jsonl:7: .*it leaves out {lost}.*model.template"):
        Encoder(chat, 100, len(chat.tokenizer)).clients([ClientData("a", (record,))])


def test_a_template_that_fails_with_the_calls_of_a_response_refuses_them():
    """It takes prompts, in which nobody calls."""
    odd = "{{ raise_exception('no calls') if m.tool_calls else '' }}"
    chat = ChatFormat(tokenizer(LIST + HEAD + odd + BODY + TAIL))
    with pytest.raises(UserError, match="no calls"):
        chat.encode(Record(TURNS[:1], "", tools=TOOLS, calls=ASKS), "", 100)


def test_calls_of_a_response_that_the_template_leaves_out_are_refused():
    chat = ChatFormat(tokenizer(LIST + HEAD + BODY + TAIL))
    with pytest.raises(UserError, match="it leaves out calls of tools"):
        chat.encode(Record(TURNS[:1], "", tools=TOOLS, calls=ASKS), "", 100)


@pytest.mark.parametrize(
    ("template", "role"),
    [(WHOLE, "system"), (WHOLE + "{# system or developer #}", "developer")],
)
def test_a_developer_is_the_system_of_a_template_that_does_not_know_one(template, role):
    text = ChatFormat(tokenizer(template)).prompt_text((Turn("developer", "Be brief."), TURNS[0]))
    assert text.startswith(f"<{role}>Be brief.<end>\n<user>")
    joined = ChatFormat(tokenizer(HEAD + "{% if m.role == 'user' %}" + BODY + "{% endif %}" + TAIL))
    assert "<user>Be brief.\n\nHow warm" in joined.prompt_text(
        (Turn("developer", "Be brief."), TURNS[0])
    )


def test_calls_and_tools_tell_prompts_apart():
    record = Record(TURNS, "9 degrees.", tools=TOOLS)
    other = replace(record, prompt=(TURNS[0], Turn("assistant", "", ASKS.replace("Ulm", "Bonn"))))
    assert len({prompt_key(r) for r in (record, other, replace(record, tools=""))}) == 3


def test_an_instruction_is_the_users_though_a_tool_spoke_last():
    assert Record(TURNS, "9 degrees.").instruction == "How warm is the weather in Ulm?"


def test_a_template_without_tools_is_as_it_was():
    chat = ChatFormat(tokenizer())
    text = chat.tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False)
    assert chat.template == CHAT
    assert chat.prompt_text(TURNS[:1]) == text
