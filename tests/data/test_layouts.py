"""Rows to records: every layout, the fields of a recipe, and the errors of rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.conversations import NoResponseError
from fedsdr.data.layouts import final_answer, rows_to_records
from fedsdr.data.records import Record, Turn
from fedsdr.data.rows import Places, SourceTable
from fedsdr.data.sources import read_source
from fedsdr.recipe.sections.data import Source

ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
]
NEWS = {"label": "neutral", "content": "Sales {rose}.", "hint": "h"}
SENTIMENT = "Choose from {{negative/neutral/positive}}.\n\n{content}"


def convert(*rows: Any, unit: Any = "row", **options: Any) -> list[Record]:
    table = SourceTable(Places(Path("f/a.json"), unit), list(enumerate(rows, start=1)))
    source = Source(path="f/a.json", **options)
    skips = (NoResponseError,) if source.empty == "skip" else ()
    found, _ = rows_to_records(table, source, skips=skips)
    return [record for row in found for record in row.records]


def message(*rows: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(*rows, **options)
    return str(caught.value)


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_a_conversation_kept_as_an_object_of_lists(keys):
    """As Arrow's older sequences of objects are read."""
    role, text = keys
    row = {"messages": {role: ["user", "assistant"], text: ["a", "b"]}}
    assert convert(row) == [Record(user("a"), "b")]
    assert "is not a list" in message({"messages": {role: ["user", "assistant"], text: ["a"]}})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ALPACA[0], Record(user("Add.\n\n1 2"), "3")),
        (ALPACA[1], Record(user("Greet."), "Hello")),
        ({"instruction": "a", "output": "b"}, Record(user("a"), "b")),
        (
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            Record(user("a\n\nc"), "b", category="qa"),
        ),
        ({"prompt": "a", "response": "b"}, Record(user("a"), "b")),
        ({"prompt": "a", "completion": "b"}, Record(user("a"), "b")),
        (
            {"instruction": "a", "output": "b", "system": "s"},
            Record((Turn("system", "s"), *user("a")), "b"),
        ),
        (
            {"question": "a", "answer": "1+1 = 2\n#### 1,002"},
            Record(user("a"), "1+1 = 2\n#### 1,002", answer="1,002"),
        ),
        ({"question": "a", "answer": "yes"}, Record(user("a"), "yes")),
        ({"instruction": 7, "output": 2.5}, Record(user("7"), "2.5")),
    ],
)
def test_known_layouts(row, expected):
    assert convert(row) == [expected]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("#### 5", "5"),
        ("#### -1,234.5 euros.", "-1,234.5"),
        ("#### 3 then\n#### $.50,", ".50"),
        ("####", ""),
        ("12", ""),
    ],
)
def test_final_numbers(answer, number):
    assert final_answer(answer) == number


@pytest.mark.parametrize(
    ("column", "role", "text", "person", "model"),
    [
        ("messages", "role", "content", "user", "assistant"),
        ("conversations", "from", "value", "human", "gpt"),
        ("conversations", "role", "content", "User", "Assistant"),
    ],
)
def test_conversations(column, role, text, person, model):
    said = [("system", "s"), (person, "a"), (model, "b"), (person, "c"), (model, "d"), (person, "")]
    row = {column: [{role: who, text: what} for who, what in said], "category": "chat"}
    expected = Record(
        (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")),
        "d",
        category="chat",
    )
    assert convert(row) == [expected]


def test_history_before_the_instruction():
    rows = [
        {"instruction": "e", "input": "", "output": "f", "history": [["a", "b"], ["c", "d"]]},
        {"instruction": "e", "input": "", "output": "f", "history": []},
        {"instruction": "e", "input": "", "output": "f", "history": None},
    ]
    long, *short = convert(*rows)
    texts = [(turn.role, turn.text) for turn in long.prompt]
    assert texts == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]
    assert short == [Record(user("e"), "f")] * 2


# Fields


def test_fields_name_columns_and_texts():
    fields = {"instruction": SENTIMENT, "response": "label", "input": "hint", "system": "Be {hint}"}
    (record,) = convert(NEWS, fields=fields, category="finance")
    asked = SENTIMENT.format(content="Sales {rose}.") + "\n\nh"
    prompt = (Turn("system", "Be h"), *user(asked))
    assert record == Record(prompt, "neutral", category="finance")
    assert "{negative/neutral/positive}" in record.instruction


def test_fields_on_top_of_a_known_layout():
    row = {**ALPACA[0], "topic": "t", "gold": 3}
    (record,) = convert(row, fields={"category": "topic", "answer": "gold"})
    assert record == Record(user("Add.\n\n1 2"), "3", category="t", answer="3")


def test_fields_of_their_own_leave_a_layout_aside():
    (record, _) = convert(*ALPACA, fields={"instruction": "output", "response": "instruction"})
    assert record == Record(user("3"), "Add.")


def test_places_may_be_columns_with_dots():
    fields = {"instruction": "say {a.b c}", "response": "r"}
    assert convert({"a.b c": "x", "r": "y"}, fields=fields) == [Record(user("say x"), "y")]


def test_a_text_with_places_needs_one_filled_in():
    fields = {"instruction": SENTIMENT, "response": "label"}
    said = message(NEWS, NEWS | {"content": ""}, fields=fields)
    assert said.startswith("f/a.json, row 2: no instruction (column 'content' is empty)")


def test_category_column_beats_the_source():
    rows = [{"prompt": "a", "response": "b", "category": category} for category in ("qa", "", None)]
    found = convert(*rows, category="other")
    assert [record.category for record in found] == ["qa", "other", "other"]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"category": "topic"}, ["fields.category = 'topic'", "'instruction', 'input', 'output'"]),
        ({"instruction": "{txt}", "response": "output"}, ["'txt'", "'instruction', 'input'"]),
        ({"instruction": "a {input", "response": "output"}, ["not a text", "{{ and }}"]),
        ({"instruction": "{input!r}", "response": "output"}, ["without a conversion"]),
        ({"instruction": "{}", "response": "output"}, ["names the column ''"]),
    ],
)
def test_fields_that_do_not_fit(fields, parts):
    said = message(*ALPACA, fields=fields)
    assert all(part in said for part in parts), said


def test_fields_cannot_replace_parts_of_a_conversation():
    said = message({"messages": [], "x": "y"}, fields={"response": "x"})
    assert "fields.response cannot replace" in said


# Errors of rows


FINE = {"instruction": "a", "input": "", "output": "b"}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"instruction": "a"}, "no response (column 'output' is missing)"),
        ({"instruction": "a", "output": None}, "no response (column 'output' is null)"),
        ({"instruction": "a", "output": float("nan")}, "no response (column 'output' is empty)"),
        ({"instruction": "a", "output": ""}, "no response (column 'output' is empty)"),
        ({"instruction": "a", "output": " \n\t"}, "no response (column 'output' is empty)"),
        ({"output": "a"}, "no instruction (column 'instruction' is missing)"),
        ({"instruction": "", "input": "x", "output": "a"}, "no instruction (column 'instruction'"),
        ({"instruction": ["a"], "output": "b"}, "column 'instruction' is not text (it is a list)"),
        ({"instruction": "a", "output": {}}, "column 'output' is not text (it is an object)"),
        ({"instruction": "a", "output": True}, "'output' is not text (it is true or false)"),
        ({"instruction": "a", "output": "x\ud800"}, "column 'output' is not valid Unicode"),
    ],
)
def test_rows_that_cannot_be_records(bad, problem):
    rows = [FINE, FINE, bad, FINE]
    said = message(*rows)
    assert said.startswith("f/a.json, row 3: ")
    assert problem in said
    assert "more row" not in said
    assert message(*rows, unit="line").startswith("f/a.json:3: ")
    assert "2 more rows have the same problem (row 4, 5)" in message(FINE, FINE, bad, bad, bad)


def test_other_problems_are_not_counted():
    empty = {"instruction": "a", "output": ""}
    rows = [FINE, empty, {"output": "b"}, *[empty] * 7]
    said = message(*rows)
    assert said == (
        "f/a.json, row 2: no response (column 'output' is empty); 7 more rows have the same "
        "problem (row 4, 5, 6, 7, 8, ...): fill in the response, remove the row, or set "
        'empty = "skip" in its source'
    )


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (None, "no response (no assistant turn"),
        ([], "no response (no assistant turn"),
        ("text", "column 'messages' is not a list (it is a text)"),
        (["text"], "a turn in column 'messages' is not an object (it is a text)"),
        ([("user", "a")], "no response (no assistant turn in column 'messages')"),
        ([("user", "a"), ("assistant", " ")], "no response (the last assistant turn"),
        ([("assistant", "a")], "no instruction (no user's text"),
        ([("system", "a"), ("assistant", "a")], "no instruction"),
        ([("user", ""), ("assistant", "a")], "no instruction"),
        ([("user", "q"), ("assistant", "a"), ("assistant", "b")], "no instruction"),
        ([("narrator", "a")], "an unknown role ('narrator'; known are system, developer, user"),
        ([(None, "a")], "an unknown role (null; known"),
        ([("user", [{"type": "text"}])], "a turn in column 'messages' has a part that is not text"),
    ],
)
def test_conversations_that_cannot_be_records(turns, problem):
    if isinstance(turns, list):
        turns = [
            {"role": turn[0], "content": turn[1]} if isinstance(turn, tuple) else turn
            for turn in turns
        ]
    said = message({"messages": turns})
    assert said.startswith("f/a.json, row 1: ")
    assert problem in said


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("text", "column 'history' is not a list (it is a text)"),
        (["text"], "not a list of [user, assistant] pairs (one is a text)"),
        ([["a"]], "not a list of [user, assistant] pairs (one is a list)"),
        ([["a", {}]], "a turn in column 'history' is not text (it is an object)"),
    ],
)
def test_histories_that_cannot_be_records(history, problem):
    said = message(FINE, FINE | {"history": history})
    assert said.startswith("f/a.json, row 2: ")
    assert problem in said


# Rows without a response, where the source says what becomes of them

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("fine", "bad"),
    [
        (FINE, FINE | {"output": ""}),
        (FINE, FINE | {"output": " \n"}),
        (FINE, FINE | {"output": None}),
        (FINE, FINE | {"output": float("nan")}),
        (FINE, {"instruction": "a"}),
        (FINE, {"instruction": "", "output": ""}),
        ({"question": "a", "answer": "b"}, {"question": "a", "answer": None}),
        ({"messages": TURNS}, {"messages": TURNS[:1]}),
        ({"messages": TURNS}, {"messages": [TURNS[0], TURNS[1] | {"content": " "}]}),
        ({"messages": TURNS}, {"messages": None}),
    ],
)
def test_rows_without_a_response_are_errors_or_skipped(fine, bad):
    said = message(fine, bad, fine, bad)
    assert said.startswith("f/a.json, row 2: no response (")
    assert "1 more row has the same problem (row 4)" in said
    assert said.endswith('or set empty = "skip" in its source')
    found = convert(fine, bad, fine, bad, empty="skip")
    assert [record.origin for record in found] == ["a.json, row 1", "a.json, row 3"]
    assert found == convert(fine, fine)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (FINE | {"instruction": ""}, "no instruction (column 'instruction' is empty)"),
        (FINE | {"output": ["b"]}, "column 'output' is not text"),
        (FINE | {"output": "x\ud800"}, "column 'output' is not valid Unicode"),
    ],
)
def test_skip_passes_over_nothing_but_a_missing_response(bad, problem):
    said = message(FINE, FINE | {"output": ""}, bad, empty="skip")
    assert said.startswith(f"f/a.json, row 3: {problem}")
    assert "skip" not in said


def test_skip_with_nothing_left_names_the_file():
    empty = FINE | {"output": ""}
    said = message(empty, empty, empty="skip")
    assert said.startswith("f/a.json: no record is left, since all 2 rows are skipped")
    assert "fields.response" in said


def test_skip_takes_a_limit_of_the_records_that_are_left(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": str(i), "response": "r" * (i % 2)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_source(Source(path=str(path), empty="skip", limit=8), seed=0).records
    asked = [int(record.instruction) for record in found]
    assert len(asked) == 8
    assert all(number % 2 for number in asked)
    assert [record.origin for record in found] == [f"a.jsonl:{number + 1}" for number in asked]
