"""Conversations in the forms that people have: roles, parts, tools, and which turns are learnt."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.partition import build_clients, group_conversations
from fedsdr.data.records import Record, Turn
from fedsdr.data.source_notices import source_notices
from fedsdr.data.sources import SourceRecords, read_source
from fedsdr.data.template import ChatFormat
from fedsdr.recipe.sections.data import Data, Source, Split
from support.tiny_models import tokenizer

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def source(folder: Path, *rows: Any, learn: Any = "last", invalid: Any = "error") -> SourceRecords:
    path = folder / "chat.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return read_source(Source(path=str(path)), 0, learn, invalid)


def record(folder: Path, row: Any, **options: Any) -> Record:
    [found] = source(folder, row, **options).records
    return found


def refusal(folder: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        source(folder, *rows, **options)
    return str(caught.value).replace(f"{folder}/", "")


# --- Roles and contents


@pytest.mark.parametrize(
    ("column", "messages", "roles"),
    [
        ("messages", said(("developer", "s"), ("user", "q"), ("model", "a")), "developer user"),
        ("messages", said(("USER", "q"), ("Bot", "a")), "user"),
        ("messages", said(("human", "q"), ("chatgpt", "a")), "user"),
        (
            "conversations",
            [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f"}'},
                {"from": "observation", "value": "9"},
                {"from": "gpt", "value": "a"},
            ],
            "user assistant tool",
        ),
        ("messages", said(("user", "q"), ("assistant", "b"), ("ipython", "9"), ("assistant", "a")),
         "user assistant tool"),
    ],
)  # fmt: skip
def test_roles_by_any_of_their_names(tmp_path, column, messages, roles):
    found = record(tmp_path, {column: messages})
    assert [turn.role for turn in found.prompt] == roles.split()
    assert found.response == "a"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        ["Hello"],
        [{"type": "input_text", "text": "Hello"}],
        [{"text": "Hello", "type": "text", "image_url": None}],
    ],
)
def test_parts_of_text_are_joined(tmp_path, content):
    assert (
        record(tmp_path, {"messages": [{**USER, "content": content}, REPLY]}).instruction == "Hello"
    )


@pytest.mark.parametrize(
    ("part", "detail"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "it is 'image_url'"),
        ({"type": "text", "text": 3}, "it is 'text'"),
        (3, "it is 'a number'"),
    ],
)
def test_parts_that_are_no_text_are_refused(tmp_path, part, detail):
    text = refusal(
        tmp_path, {"messages": [USER, REPLY]}, {"messages": [{**USER, "content": [part]}, REPLY]}
    )
    assert text.startswith("chat.jsonl:2: a turn in column 'messages' has a part that is not text")
    assert detail in text
    assert text.endswith('leave such rows out with data.invalid = "skip"')


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([USER], [REPLY]),
        ("q", [REPLY]),
        ([USER], "a"),
        (json.dumps([USER]), json.dumps([REPLY])),
    ],
)
def test_trls_conversational_prompt_and_completion(tmp_path, prompt, completion):
    found = record(tmp_path, {"prompt": prompt, "completion": completion})
    assert found == Record((Turn("user", "q"),), "a")


def test_of_a_prompt_nothing_is_learnt(tmp_path):
    row = {"prompt": [USER, REPLY, USER], "completion": [REPLY, USER, REPLY]}
    found = source(tmp_path, row, learn="all")
    assert [len(r.prompt) for r in found.records] == [3, 5]
    assert found.answers == 2


def test_a_text_that_looks_like_a_list_is_a_text(tmp_path):
    assert record(tmp_path, {"prompt": "[1, 2]", "completion": '["role"]'}).response == '["role"]'


def test_a_conversation_in_a_cell_of_a_csv_file(tmp_path):
    path = tmp_path / "chat.csv"
    text = json.dumps([USER, REPLY]).replace('"', '""')
    path.write_text(f'messages\n"{text}"\n')
    assert read_source(Source(path=str(path)), 0).records == [Record((Turn("user", "q"),), "a")]
    path.write_text('messages\n"[{""role"": 1e999}]"\n')
    with pytest.raises(
        UserError, match=r"chat.csv:2: column 'messages' is a text, but not of valid"
    ):
        read_source(Source(path=str(path)), 0)


# --- Tools


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [CALL], "content": None},
        {"tool_calls": [{"function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}]},
        {"function_call": {"name": "weather", "arguments": {"town": "Ulm"}}, "content": ""},
        {"role": "function_call", "content": '{"name": "weather", "arguments": {"town": "Ulm"}}'},
    ],
)
def test_calls_in_any_form_are_those_of_chat_templates(tmp_path, message):
    turns = [USER, {"role": "assistant", **message}, {"role": "tool", "content": "9", "name": "w"}]
    found = record(tmp_path, {"messages": [*turns, REPLY], "tools": [TOOL]})
    assert found.prompt[1].message == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found.prompt[2].message == {"role": "tool", "content": "9", "name": "w"}
    assert json.loads(found.tools) == [TOOL]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL["function"]]), [TOOL["function"]]])
def test_tools_in_any_form_are_those_of_chat_templates(tmp_path, tools):
    found = record(tmp_path, {"messages": [USER, REPLY], "functions": tools})
    assert json.loads(found.tools) == [TOOL]


def test_a_call_is_a_response(tmp_path):
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}
    found = record(tmp_path, row)
    assert found.response == ""
    assert json.loads(found.calls)["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tool_calls": [{"name": 3}]}, "has a call of a function without a name"),
        ({"tool_calls": "weather"}, "has a call of a function without a name"),
        ({"role": "user", "tool_calls": [CALL]}, "calls functions (it is the user's)"),
        ({"weight": 0.5}, "has a weight that is neither 0 nor 1 (0.5)"),
        ({"role": "function_call", "content": "{"}, "not of valid JSON"),
    ],
)
def test_calls_and_weights_that_are_none_are_refused_by_row(tmp_path, change, problem):
    text = refusal(tmp_path, {"messages": [USER, {**REPLY, **change}, USER, REPLY]})
    assert text.startswith("chat.jsonl:1: a turn in column 'messages' ")
    assert problem in text


def test_tools_without_a_name_are_refused_by_row(tmp_path):
    for tools, problem in ((["f"], "without a name"), ("f", "not a list of functions")):
        text = refusal(tmp_path, {"messages": [USER, REPLY], "tools": tools})
        assert text.startswith("chat.jsonl:1: column 'tools' ")
        assert problem in text


def test_keys_that_arrow_fills_with_null_are_none(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]} for call in (CALL, other)
    ]
    path = tmp_path / "chat.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_source(Source(path=str(path)), 0).records
    assert [json.loads(r.calls)["tool_calls"] for r in found] == [[CALL], [other]]


# --- Which turns are learnt

TALK = said(
    ("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"),
    ("user", "thanks"),
)  # fmt: skip


def test_the_last_assistant_turn_is_learnt(tmp_path):
    found = source(tmp_path, {"messages": TALK}, {"messages": [USER, REPLY]})
    assert [(r.response, len(r.prompt), r.place) for r in found.records] == [
        ("a2", 4, 0),
        ("a", 1, 0),
    ]
    assert [str(each) for each in source_notices([found], "last")] == [
        'conversations: 2 of 3 assistant turns are learnt (data.learn = "last")',
        "left out: what follows the last assistant turn of 1 conversation of chat.jsonl "
        "(first chat.jsonl:1)",
    ]


def test_all_assistant_turns_are_learnt_each_with_the_turns_before_it(tmp_path):
    found = source(tmp_path, {"messages": TALK}, {"messages": [USER, REPLY]}, learn="all")
    got = [(r.response, len(r.prompt), r.place, r.origin) for r in found.records]
    assert got == [
        ("a1", 2, 0, "chat.jsonl:1, answer 1"),
        ("a2", 4, 1, "chat.jsonl:1, answer 2"),
        ("a", 1, 0, "chat.jsonl:2"),
    ]
    assert [n.kind for n in source_notices([found], "all")] == ["left out"]


GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} <end>{% endgeneration %} "
    "{% else %}<ask> {{ m['content'] }} <answer> {% endif %}{% endfor %}"
)


@pytest.mark.parametrize("learn", ["all", "last"])
def test_what_is_learnt_is_what_trls_mask_of_assistant_tokens_says(tmp_path, learn):
    """TRL trains on transformers' mask of what a template marks as generated."""
    talk = said(("user", "name one"), ("assistant", "a b"), ("user", "two ?"), ("assistant", "c"))
    fast = tokenizer(GENERATION)
    whole = fast.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    chat = ChatFormat(fast)
    marked = [0] * len(whole["input_ids"])
    for each in source(tmp_path, {"messages": talk}, learn=learn).records:
        example = chat.encode(each, each.response, 100)
        assert example is not None
        end = len(example)
        assert [*example.prompt, *example.response] == whole["input_ids"][:end]
        marked[len(example.prompt) : end] = [1] * len(example.response)
    expected = whole["assistant_masks"]
    if learn == "last":
        first = expected.index(1)
        expected = [int(bool(m) and i > first + 2) for i, m in enumerate(expected)]
    assert marked == expected


def test_a_greeting_is_learnt_from_no_one(tmp_path):
    row = {"messages": said(("assistant", "Welcome"), ("user", "q"), ("assistant", "a"))}
    found = source(tmp_path, row, learn="all")
    assert [(r.response, len(r.prompt)) for r in found.records] == [("a", 2)]
    [notice] = source_notices([found], "all")
    assert str(notice).startswith("conversations: 1 of 2 assistant turns are learnt")


def test_turns_of_weight_0_are_not_learnt(tmp_path):
    talk = [
        USER,
        {**REPLY, "weight": 0},
        USER,
        {**REPLY, "weight": 1},
        USER,
        {**REPLY, "weight": 0},
    ]
    for learn in ("last", "all"):
        assert [
            len(r.prompt) for r in source(tmp_path, {"messages": talk}, learn=learn).records
        ] == [3]
    assert "every assistant turn in column 'messages' has weight 0" in refusal(
        tmp_path, {"messages": talk[:2]}
    )


def test_an_empty_assistant_turn_among_all_is_refused(tmp_path):
    talk = [USER, {**REPLY, "content": ""}, USER, REPLY]
    assert "assistant turn 2 in column 'messages' is empty" in refusal(
        tmp_path, {"messages": talk}, learn="all"
    )
    assert record(tmp_path, {"messages": talk}).response == "a"


def test_the_history_of_alpaca_is_learnt_with_all(tmp_path):
    row = {"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]]}
    assert [r.response for r in source(tmp_path, row, learn="all").records] == ["a1", "a2"]
    assert [r.response for r in source(tmp_path, row).records] == ["a2"]


# --- Conversations stay together


def talks(folder: Path, count: int) -> str:
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {i}"} for turn in TALK[:5]],
             "category": f"c{i % 3}"} for i in range(count)]  # fmt: skip
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("by", ["iid", "dirichlet", "column"])
def test_no_conversation_is_split(tmp_path, by):
    data = Data(
        sources=(Source(path=talks(tmp_path, 30)),),
        split=Split(by=by, clients=3, alpha=5.0),
        held_out=0.3,
        learn="all",
    )
    clients = build_clients(data, 0)
    assert sum(len(c.train) + len(c.held_out) for c in clients) == 60
    for client in clients:
        for part in (client.train, client.held_out):
            assert part
            assert all(len(group) == 2 for group in group_conversations(part))


def test_a_limit_is_of_conversations(tmp_path):
    found = read_source(Source(path=talks(tmp_path, 30), limit=4), 0, "all")
    assert [len(group) for group in group_conversations(found.records)] == [2] * 4


def test_one_turn_or_all_the_same_conversations_are_held_out(tmp_path):
    sources = (Source(path=talks(tmp_path, 30), client="a"),)
    [last], [whole] = (
        build_clients(Data(sources=sources, learn=each), 0) for each in ("last", "all")
    )
    assert {r.origin for r in last.held_out} == {r.origin.partition(",")[0] for r in whole.held_out}


# --- What an assistant thought

THOUGHT = {"type": "thinking", "thinking": "So it is."}


@pytest.mark.parametrize(
    "reply",
    [
        {**REPLY, "reasoning_content": "So it is."},
        {**REPLY, "reasoning": "\nSo it is.\n", "reasoning_content": ""},
        {**REPLY, "thinking": "So it is."},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "a"}]},
        {**REPLY, "content": "<think>\nSo it is.\n</think>\n\na", "reasoning": "Another."},
    ],
    ids=["reasoning_content", "reasoning", "thinking", "a part", "in the text already"],
)
def test_a_thought_is_the_beginning_of_its_response(tmp_path, reply):
    found = source(tmp_path, {"messages": [USER, reply]})
    assert [r.response for r in found.records] == ["<think>\nSo it is.\n</think>\n\na"]
    assert source_notices([found], "last") == []


def test_thoughts_of_earlier_turns_are_not_shown(tmp_path):
    """Nor do chat templates of models that think show them."""
    earlier = {**REPLY, "reasoning_content": "So it is."}
    found = record(tmp_path, {"messages": [USER, earlier, USER, REPLY]})
    assert [turn.text for turn in found.prompt] == ["q", "a", "q"]
    assert found.response == "a"


def test_a_thought_alone_is_no_response_and_only_an_assistant_has_one(tmp_path):
    for reply in ({"content": "<think>So.</think>"}, {"content": "", "thinking": "So."},
                  {"content": [THOUGHT]}):  # fmt: skip
        row = {"messages": [USER, {"role": "assistant", **reply}]}
        assert "the last assistant turn in column 'messages' is empty" in refusal(tmp_path, row)
    found = source(tmp_path, {"messages": [{**USER, "reasoning": "So."}, REPLY]})
    assert [str(n) for n in source_notices([found], "last")] == [
        "not used: columns of chat.jsonl: 'reasoning' of messages"
    ]
    row = {"messages": [USER, {**REPLY, "reasoning": {"effort": "low"}}]}
    assert "'reasoning' of messages" in str(source_notices([source(tmp_path, row)], "last")[0])


# --- What is not used is said


def test_columns_and_keys_that_nothing_reads_are_named(tmp_path):
    talk = [{**USER, "name": "Ann"}, {**REPLY, "id": 7, "logprobs": None}]
    rows = [
        {"messages": talk, "prompt": "q", "system": "", "source": "x", "tags": [], "score": None},
        {"messages": [{"role": "system", "content": "s"}, *talk], "system": "t"},
    ]
    [notice] = source_notices([source(tmp_path, *rows)], "last")
    assert str(notice) == (
        "not used: columns of chat.jsonl: 'prompt', 'source', 'system', 'id' of messages, "
        "'name' of messages"
    )


def test_a_row_with_all_its_columns_used_has_no_notice(tmp_path):
    rows = [{"messages": [USER, REPLY], "system": "s", "tools": [TOOL], "category": "c"}]
    assert source_notices([source(tmp_path, *rows)], "last") == []
    rows = [{"instruction": "a", "output": "b", "tools": "hammer"}]
    assert [n.kind for n in source_notices([source(tmp_path, *rows)], "last")] == ["not used"]


# --- Rows that are skipped


FAULTS = [
    "{",
    "[1]",
    {"messages": [{"role": "narrator", "content": "x"}]},
    {"messages": [USER]},
    {"messages": 7},
    {"messages": [{**USER, "content": [{"type": "image"}]}, REPLY]},
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_rows_that_cannot_be_used_are_errors_or_skipped(tmp_path, fault):
    good = {"messages": [USER, REPLY]}
    assert refusal(tmp_path, good, fault).startswith("chat.jsonl:2: ")
    found = source(tmp_path, good, fault, good, invalid="skip")
    assert [r.origin for r in found.records] == ["chat.jsonl:1", "chat.jsonl:3"]
    assert [row.place for row in found.skipped] == ["chat.jsonl:2"]
    assert found.rows == 3
    [notice] = [n for n in source_notices([found], "last") if n.kind == "skipped"]
    assert notice.words.startswith("1 of 3 rows of chat.jsonl: chat.jsonl:2, ")


def test_the_first_skipped_rows_are_named_and_the_others_counted(tmp_path):
    found = source(tmp_path, {"messages": [USER, REPLY]}, *FAULTS, invalid="skip")
    [notice] = [n for n in source_notices([found], "last") if n.kind == "skipped"]
    assert notice.words.startswith("6 of 7 rows of chat.jsonl: chat.jsonl:2, not valid JSON (")
    assert notice.words.endswith("and 3 more")


def test_nothing_left_is_an_error_that_names_the_first_row(tmp_path):
    for rows in (FAULTS, FAULTS[:1], FAULTS[2:3]):
        text = refusal(tmp_path, *rows, invalid="skip")
        assert text.startswith("chat.jsonl: no record is left")
        assert "first chat.jsonl:1: " in text
