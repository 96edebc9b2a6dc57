"""What all fuzz tests share: how many cases there are, and what must be true of every one."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedsdr.core.errors import UserError

# The same cases everywhere and always: a failure can be repeated by running the test again.
fuzzed = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What JSON and TOML can hold where it should not be.
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, False, 0, -1, 3, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, -0.0, 1e300,
        float("inf"), float("-inf"), float("nan"), "", " ", "x", "1", "../x", "/etc/passwd", "a\0b",
        ".", "a\n", "CON", "x" * 300, "ä\u2028", "{x}", "{", "$HOME", "${NO}", "~nobody", "hub:x",
        [], {}, [[]], [None], ["x", 1], {"x": None}, {"x": {"x": []}}, [{}], {"": ""},
    ]
).map(deepcopy)  # fmt: skip

State = dict[str, tuple[int, int, bytes]]


def state(folder: Path, without: str = "") -> State:
    """Every entry below a folder with its mode, time of change and content."""
    entries = (path for path in folder.rglob("*") if path.name != without)
    return {str(path): _state(path) for path in entries}


def _state(path: Path) -> tuple[int, int, bytes]:
    found = path.lstat()
    return found.st_mode, found.st_mtime_ns, path.read_bytes() if path.is_file() else b""


def value_or_user_error(folder: Path, call: Callable[[], Any]) -> Any:
    """What `call` returns, None where it says what the user has to do; it writes nothing."""
    before = state(folder)
    value = None
    try:
        value = call()
    except UserError as error:
        assert str(error).strip()  # noqa: PT017 (either outcome is right)
    assert state(folder) == before
    return value


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were right once: cut, flipped, spliced, repeated, one to three times."""
    data = draw(originals)
    for _ in range(draw(st.integers(1, 3))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        kind = draw(st.sampled_from("cut drop flip insert splice repeat".split()))
        if kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[end:]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
        elif kind == "splice":
            data = data[:at] + draw(originals)[end:]
        elif kind == "repeat":
            data = data[:end] + data[at:]
    return data
