"""From a row's messages to turns, in the forms of OpenAI, TRL and ShareGPT, and from turns to the
responses that are learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedsdr.data.cells import cell_text, is_filled, json_text, json_value
from fedsdr.data.records import Role, Turn
from fedsdr.data.rows import Cells, RowError, json_kind
from fedsdr.data.thinking import split_thought, with_first_thought
from fedsdr.recipe.sections.data import Learn

ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
KEYS: Final = (
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "weight",
)  # fmt: skip
THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")  # keys of an assistant's thought
TOOLS: Final = ("tools", "functions")  # columns with the functions that the model may call
TEXT_PARTS: Final = ("text", "input_text", "output_text")  # of a content that is a list
SKIP: Final = 'leave such rows out with data.invalid = "skip"'
REMEDY: Final = f"mend or remove the row, or {SKIP}"


class NoResponseError(RowError):
    """A row whose response is empty, null or missing: `Source.empty` decides if it is skipped."""

    def __init__(self, detail: str) -> None:
        remedy = 'fill in the response, remove the row, or set empty = "skip" in its source'
        super().__init__("no response", detail, remedy)


def no_instruction(detail: str) -> RowError:
    """The error of a row without an instruction."""
    return RowError("no instruction", detail, "fill in the instruction or remove the row")


@dataclass(frozen=True)
class RowTurns:
    """The turns of a row.

    tools: as in `Record`. given: how many turns are a prompt, of which nothing is learnt.
    weightless: places of turns with weight 0. unused: keys of messages that nothing reads.
    thoughts: place -> what an assistant thought before this turn, where its message says so apart.
    """

    turns: tuple[Turn, ...]
    tools: str = ""
    given: int = 0
    weightless: frozenset[int] = frozenset()
    unused: frozenset[str] = frozenset()
    thoughts: Mapping[int, str] = field(default_factory=dict)

    def response(self, place: int) -> str:
        """The text of an assistant turn, with what it thought before as its beginning."""
        text = self.turns[place].text
        if place not in self.thoughts or split_thought(text):
            return text
        return with_first_thought(self.thoughts[place], text)

    @property
    def answers(self) -> int:
        """How many turns are an assistant's and might be learnt."""
        return sum(turn.role == "assistant" for turn in self.turns[self.given :])

    @property
    def unanswered(self) -> bool:
        """Whether turns follow the last assistant turn: they teach nothing."""
        return bool(self.turns) and self.turns[-1].role != "assistant"


def find_messages(value: Any) -> list[Any]:
    """The messages in a cell that may hold a text instead; [] where it does.

    A CSV file has them as the text of a JSON list.
    """
    if isinstance(value, str):
        if value.lstrip()[:1] != "[" or not ('"role"' in value or '"from"' in value):
            return []
        try:
            value = json_value(value, "")
        except RowError:
            return []
    whole = isinstance(value, list) and all(
        isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value
    )
    return value if whole else []


def read_conversation(
    messages: Sequence[Any], column: str, tools: str = "", given: int = 0
) -> RowTurns:
    """The turns of messages, without empty system turns. given: messages that are a prompt.

    Raises `RowError` for roles, contents and calls that are unknown.
    """
    turns: list[Turn] = []
    weightless: set[int] = set()
    thoughts: dict[int, str] = {}
    unused: set[str] = set()
    prompts = 0
    for number, message in enumerate(messages):
        turn = _turn(message, f"a turn in column {column!r}")
        if turn.role in ("system", "developer") and not turn.text.strip():
            continue
        if not _weight(message, column):
            weightless.add(len(turns))
        prompts += number < given
        read = {*KEYS, *_thought_key(message, turn.role)}
        if thought := _first_thought(message, turn.role):
            thoughts[len(turns)] = thought
        if turn.role == "tool":
            read.add("name")  # of the function: it is passed on
        unused |= {key for key, value in message.items() if key not in read and is_filled(value)}
        turns.append(turn)
    return RowTurns(
        tuple(turns), tools, prompts, frozenset(weightless), frozenset(unused), thoughts
    )


def learnt_places(conversation: RowTurns, learn: Learn, column: str) -> list[int]:
    """The places of the assistant turns that are learnt, at least one.

    Turns of weight 0 and, where all others are learnt, those before any user has spoken are not.
    Raises `RowError` where there is none, or one is empty or answers no text of a user or a tool.
    """
    turns = conversation.turns
    replies = [
        place
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and place >= conversation.given
    ]
    if not replies:
        raise NoResponseError(f"no assistant turn in column {column!r}")
    weighty = [place for place in replies if place not in conversation.weightless]
    if not weighty:
        raise NoResponseError(f"every assistant turn in column {column!r} has weight 0")
    answering = [p for p in weighty if any(turn.role == "user" for turn in turns[:p])]
    places = answering if learn == "all" and answering else weighty[-1:]
    for place in places:
        name = "last assistant turn" if place == replies[-1] else f"assistant turn {place + 1}"
        _check_reply(turns, place, f"the {name} in column {column!r}")
    return places


def _check_reply(turns: Sequence[Turn], place: int, name: str) -> None:
    reply, before = turns[place], turns[place - 1] if place else None
    if not split_thought(reply.text).answer.strip() and not reply.calls:
        raise NoResponseError(f"{name} is empty")
    asked = before is not None and (
        before.role == "tool" or (before.role == "user" and bool(before.text.strip()))
    )
    if not asked:
        raise no_instruction(f"no user's text before {name}")


def _turn(message: Any, what: str) -> Turn:
    remedy = 'write turns as {"role": ..., "content": ...} or {"from": ..., "value": ...}'
    if not isinstance(message, Mapping):
        raise RowError(f"{what} is not an object", f"it is {json_kind(message)}", remedy)
    name = message.get("role") or message.get("from")
    if not isinstance(name, str) or name.lower() not in ROLES:
        given = f"{name!r:.60}" if isinstance(name, str) else json_kind(name)
        detail = f"{given}; known are {', '.join(ROLES)}"
        remedy = f"use one of these, or {SKIP}"
        raise RowError(f"{what} has an unknown role", detail, remedy)
    role = ROLES[name.lower()]
    content = message.get("content")
    content = message.get("value") if content is None else content
    if name.lower() == "function_call":  # ShareGPT's: the call is the text
        calls = json_value(content, what)
        content = None
    else:
        calls = message.get("tool_calls") or message.get("function_call")
    text = content_text(content, what)
    extra: dict[str, Any] = {}
    if is_filled(calls) or name.lower() == "function_call":
        if role != "assistant":
            raise RowError(f"{what} calls functions", f"it is the {role}'s", REMEDY)
        extra = {"tool_calls": _calls(calls, what)}
    if role == "tool":
        parts = {key: message.get(key) for key in ("name", "tool_call_id")}
        extra = {key: cell_text(part, what) for key, part in parts.items() if is_filled(part)}
    return Turn(role, text, json_text(extra, what) if extra else "")


def _thought_key(message: Mapping[str, Any], role: Role) -> list[str]:
    """The key with what an assistant thought before it answered; none where there is nothing."""
    filled = (key for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip())
    return [*filled][:1] if role == "assistant" else []


def _first_thought(message: Mapping[str, Any], role: Role) -> str:
    """What an assistant thought before it answered, by a key or by parts of the content."""
    for key in _thought_key(message, role):
        return str(message[key])
    parts = message.get("content") if role == "assistant" else None
    return "".join(map(_part_thought, parts)) if isinstance(parts, list) else ""


def _part_thought(part: Any) -> str:
    thinks = isinstance(part, Mapping) and part.get("type") == "thinking"
    return part["thinking"] if thinks and isinstance(part.get("thinking"), str) else ""


def content_text(content: Any, what: str) -> str:
    """The text of a message's content, whose parts are joined where it is a list of them."""
    if not isinstance(content, list):
        return cell_text(content, what)
    return "".join(_part_text(part, what) for part in content)


def _part_text(part: Any, what: str) -> str:
    if isinstance(part, str):
        return cell_text(part, what)
    kind = part.get("type", "text") if isinstance(part, Mapping) else json_kind(part)
    if _part_thought(part):
        return ""
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        remedy = f'keep parts {{"type": "text", "text": ...}} alone, or {SKIP}'
        raise RowError(f"{what} has a part that is not text", f"it is {kind!r:.60}", remedy)
    return cell_text(part["text"], what)


def _calls(value: Any, what: str) -> list[dict[str, Any]]:
    """Calls as chat templates read them, arguments as an object where they are the text of one."""
    calls = json_value(value, what)
    return [_call(call, what) for call in (calls if isinstance(calls, list) else [calls])]


def _call(call: Any, what: str) -> dict[str, Any]:
    function = _function(call, f"{what} has a call", '{"name": ..., "arguments": {...}}')
    arguments = json_value(function.get("arguments"), f"{what} has arguments that are a text")
    arguments = {} if not is_filled(arguments) else arguments
    rest = call if "function" in call else {}
    return {**rest, "type": "function", "function": {**function, "arguments": arguments}}


def _function(value: Any, what: str, form: str) -> Mapping[str, Any]:
    """The function of a call or of a tool, by itself or in an object with other keys."""
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(
            f"{what} of a function without a name",
            f"it is {json_kind(value)}",
            f"write it as {form}, or {SKIP}",
        )
    return function


def read_tools(cells: Cells) -> str:
    """The functions that the model may call, a JSON list; "" for none."""
    column = next((name for name in TOOLS if is_filled(cells.get(name))), "")
    if not column:
        return ""
    what = f"column {column!r}"
    value = json_value(cells[column], what)
    if not isinstance(value, list):
        raise RowError(f"{what} is not a list of functions", f"it is {json_kind(value)}", REMEDY)
    form = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
    tools = [
        each if "function" in each else {"type": "function", "function": each}
        for each in value
        if _function(each, what, form)
    ]
    return json_text(tools, what) if tools else ""


def _weight(message: Mapping[str, Any], column: str) -> bool:
    """OpenAI's weight of a turn: whether it is learnt."""
    weight = message.get("weight")
    if not is_filled(weight):
        return True
    if weight not in (0, 1):
        problem = f"a turn in column {column!r} has a weight that is neither 0 nor 1"
        raise RowError(
            problem, f"{weight!r:.60}", "set it to 0 for a turn that is not learnt, or 1"
        )
    return bool(weight)
