"""Names of clients, in any script, and the folders that they have."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedsdr.core import files
from fedsdr.core.errors import UserError

LONGEST_NAME: Final = 100  # characters
PUNCTUATION: Final = " -_.,'()&+"
NAME_FILE: Final = "name.txt"  # in the folder of a client that is not called as its folder
CUT: Final = 40  # characters of a name in the name of its folder

# A name that is a safe folder name on every system: no path separators, no trailing dot (Windows
# drops it), no leading dash (commands would take it for an option), and no Windows device name.
SAFE_NAME: Final = re.compile(
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"
    r"[a-z0-9_](?:[a-z0-9._-]{0,98}[a-z0-9_-])?",
    re.IGNORECASE | re.ASCII,
)


def is_name_character(character: str) -> bool:
    """Letters, marks and digits of any script, and a few signs."""
    return (
        character.isalnum()
        or character in PUNCTUATION
        or unicodedata.category(character).startswith("M")
    )


def is_client_name(name: str) -> bool:
    """Whether a client can be called so."""
    return (
        0 < len(name) <= LONGEST_NAME
        and name == name.strip()
        and all(map(is_name_character, name))
        and any(map(str.isalnum, name))
    )


def check_client_name(name: str) -> None:
    """Raise `UserError` for what is no name of a client."""
    if not is_client_name(name):
        raise UserError(
            f"client = {name!r} is no name of a client: use at most {LONGEST_NAME} letters and "
            f"digits of any script, spaces inside and the signs {PUNCTUATION.strip()}"
        )


def check_distinct_clients(names: Iterable[str]) -> None:
    """Raise `UserError` where two clients would have one folder, where the system ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        folder = client_folder_name(name).casefold()
        if folder in seen:
            raise UserError(
                f"two clients would be called {seen[folder]!r} and {name!r}: choose another client "
                "name for one (letter case and Unicode forms do not tell names apart)"
            )
        seen[folder] = name


def client_folder_name(name: str) -> str:
    """The folder of a client: its name where that is a safe one, else its Latin letters and
    digits with a digest of the whole name, the same for all Unicode forms of it."""
    if SAFE_NAME.fullmatch(name):
        return name
    whole = unicodedata.normalize("NFC", name)
    latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", latin)[:CUT].strip("-") or "client"
    return f"{readable}-{hashlib.blake2b(whole.encode(), digest_size=5).hexdigest()}"


def client_folder(parent: Path, name: str) -> Path:
    """The client's folder below `parent`, made where it is missing, its owner's alone. A folder
    that is not called as its client holds the name."""
    folder = parent / client_folder_name(name)
    files.make_folder(folder, private=True)
    if folder.name != name and not (folder / NAME_FILE).exists():
        files.write_text(folder / NAME_FILE, name + "\n", private=True)
    return folder


def client_of_folder(folder: Path) -> str:
    """The name of the client whose folder it is."""
    file = folder / NAME_FILE
    return file.read_text(encoding="utf-8").rstrip("\n") if file.exists() else folder.name
