"""A disk that forgets: what POSIX lets a loss of power leave of the writes of a run.

`recorded` notes every call that changes what lies below a folder. `Disk` plays such a trace up to
any point. What was synced is there; of the rest each file's data may be there, lost, cut or zeros,
and each entry of a folder (a creation, a rename, a removal) may be there or not.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Call = tuple[Any, ...]
Contents = dict[str, bytes]  # path -> bytes; of a folder, its path with a slash -> b""


@contextmanager
def recorded(root: Path) -> Iterator[list[Call]]:
    """The calls that change what lies below `root`, paths relative to it, as they are made."""
    calls: list[Call] = []
    opened: dict[int, str] = {}
    real = {n: getattr(os, n) for n in ("open", "close", "write", "fsync", "ftruncate")}

    def inside(path: Any) -> str | None:
        path = Path(path).absolute()
        return str(path.relative_to(root)) if path.is_relative_to(root) else None

    def open_(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        new = not os.path.lexists(path)
        descriptor: int = real["open"](path, flags, mode, **rest)
        if not rest and (name := inside(path)) is not None:
            opened[descriptor] = name
            if new:
                calls.append(("create", name))
        return descriptor

    def close(descriptor: int) -> None:
        opened.pop(descriptor, None)
        real["close"](descriptor)

    def write(descriptor: int, data: Any) -> int:
        count: int = real["write"](descriptor, data)
        if descriptor in opened:
            calls.append(("write", opened[descriptor], bytes(data[:count])))
        return count

    def ftruncate(descriptor: int, length: int) -> None:
        real["ftruncate"](descriptor, length)
        calls.append(("truncate", opened[descriptor], length))

    def fsync(descriptor: int) -> None:
        # The disk's own is left out: it takes time, and the one that is played has no need of it.
        if descriptor in opened:
            calls.append(("sync", opened[descriptor]))

    def noted(name: str) -> Callable[..., None]:
        function = getattr(os, name)

        def call(*paths: Any, **rest: Any) -> None:
            function(*paths, **rest)
            count = 2 if name in ("replace", "rename") else 1
            names = [inside(path) for path in paths[:count]]
            if None not in names and "dir_fd" not in rest:
                calls.append(({"replace": "rename"}.get(name, name), *names))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for each in (open_, close, write, ftruncate, fsync):
            patch.setattr(os, each.__name__.rstrip("_"), each)
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, noted(name))
        yield calls


@dataclass(eq=False)
class Node:
    """A file or a folder, as it is and as it was when it was last synced."""

    folder: bool
    data: bytes = b""
    kept: bytes = b""
    entries: dict[str, "Node"] = field(default_factory=dict)
    kept_entries: dict[str, "Node"] = field(default_factory=dict)
    pending: list[list[tuple[str, "Node | None"]]] = field(default_factory=list)

    def enter(self, *changes: tuple[str, "Node | None"]) -> None:
        """Change entries, all of them at once."""
        self.pending.append(list(changes))
        _apply(self.entries, changes)

    def sync(self) -> None:
        self.kept, self.kept_entries, self.pending = self.data, dict(self.entries), []


def _apply(entries: dict[str, Node], changes: Any) -> None:
    for name, node in changes:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class Disk:
    """What a trace makes of an empty folder."""

    def __init__(self) -> None:
        self.root = Node(folder=True)

    def find(self, path: str) -> Node:
        node = self.root
        for part in Path(path).parts:
            node = node.entries[part]
        return node

    def play(self, call: Call) -> None:
        kind, path, *rest = call
        above, name = self.find(str(Path(path).parent)), Path(path).name
        match kind:
            case "create" | "mkdir":
                above.enter((name, Node(folder=kind == "mkdir")))
            case "write":
                self.find(path).data += rest[0]
            case "truncate":
                self.find(path).data = self.find(path).data[: rest[0]]
            case "sync":
                self.find(path).sync()
            case "rename":
                assert Path(rest[0]).parent == Path(path).parent
                above.enter((Path(rest[0]).name, above.entries[name]), (name, None))
            case "unlink" | "rmdir":
                above.enter((name, None))

    def left(self, how: "How", draw: random.Random, where: str = "") -> Contents:
        """What is found when the power is back, that failed at the paths that begin with `where`:
        elsewhere all is there."""
        found: Contents = {}

        def walk(node: Node, place: str) -> None:
            how = chosen if place.startswith(where) else EVERYTHING
            entries = dict(node.kept_entries)
            for changes in node.pending:
                if how.entries(draw):
                    _apply(entries, changes)
            for name, each in sorted(entries.items()):
                if each.folder:
                    found[f"{place}{name}/"] = b""
                    walk(each, f"{place}{name}/")
                else:
                    dirty = each.data != each.kept
                    found[place + name] = how.data(each, draw) if dirty else each.data

        chosen = how
        walk(self.root, "")
        return found


@dataclass(frozen=True)
class How:
    """entries: whether a change of a folder is kept. data: what is kept of a file."""

    entries: Callable[[random.Random], bool]
    data: Callable[[Node, random.Random], bytes]


def _torn(node: Node, draw: random.Random) -> bytes:
    """What was synced and some of what came after it, or zeros in its place."""
    if not node.data.startswith(node.kept):
        return draw.choice([node.data, node.kept])
    new = node.data[len(node.kept) :]
    part = new[: draw.randint(0, len(new))]
    return node.kept + draw.choice([new, part, bytes(len(part))])


EVERYTHING = How(lambda draw: True, lambda node, draw: node.data)
NOTHING = How(lambda draw: False, lambda node, draw: node.kept)
NAMES = How(lambda draw: True, lambda node, draw: node.kept)  # renamed, and empty
DATA = How(lambda draw: False, lambda node, draw: node.data)
SOME = How(lambda draw: draw.random() < 0.5, _torn)


def put(contents: Contents, folder: Path) -> None:
    """Make a folder of that content."""
    folder.mkdir()
    for name, data in contents.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(data)


def read(folder: Path) -> Contents:
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): b""
        if path.is_dir()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }
