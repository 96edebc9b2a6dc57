"""What the project takes in is pinned and audited; what it hands out is whole."""

import json
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import audit
from support.repository import REPOSITORY

PINS = [
    Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line
]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def wanted(extra: str) -> list[Requirement]:
    """What the project itself requires with one of its extras."""
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def requirements(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What a distribution requires here with some of its extras."""
    if name == PROJECT["name"]:
        return [each for extra in extras for each in wanted(extra)]
    found = [Requirement(line) for line in metadata.requires(name) or ()]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [
        each for each in found
        if each.marker is None or any(each.marker.evaluate(values) for values in environments)
    ]  # fmt: skip


def closure(extra: str) -> set[str]:
    """Canonical names of all that installing the project with an extra brings in."""
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(canonicalize_name(PROJECT["name"]), frozenset({extra}))]
    while left:
        place = left.pop()
        if place not in seen:
            seen.add(place)
            left += [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements(*place)]
    return {name for name, _ in seen} - {PROJECT["name"]}


def test_every_distribution_that_the_extras_bring_in_is_pinned():
    needed = closure("dev")
    assert {"torch", "ray", "flwr", "cryptography", "hypothesis", "setuptools"} <= needed
    assert needed - {canonicalize_name(pin.name) for pin in PINS} == set()


def test_nothing_is_pinned_that_nothing_needs():
    """A pin that is left behind would be audited in vain."""
    others = {"mutmut", "trl"}  # of the extras that are not installed for tests
    assert {canonicalize_name(pin.name) for pin in PINS} - closure("dev") == others


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_a_pin_is_one_version_from_the_index(pin):
    assert pin.url is None
    [one] = pin.specifier
    assert one.operator == "=="
    assert re.fullmatch(r"[0-9][0-9a-z.]*", one.version)


def test_no_requirement_of_ours_goes_round_the_index():
    for extra in PROJECT["optional-dependencies"]:
        assert [each.name for each in wanted(extra) if each.url] == []


# --- No index by name: whoever installs this has set up pip, with an index of his own

HOSTS = re.compile(
    r"\bpypi\.[a-z]|pythonhosted\.[a-z]|download\.pytorch\.|conda\.anaconda\.|--(extra-)?index-url"
    r"|https?://\S+/simple\b"
)
GENERATED = {".venv", ".git", "build", "runs", "mutants", "__pycache__"}


def ours(folder: Path) -> list[Path]:
    """Files of the checkout that are no product of a tool."""
    found: list[Path] = []
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            made = path.name in GENERATED or path.name.endswith(("_cache", ".egg-info"))
            found += [] if made else ours(path)
        elif path.is_file():
            found.append(path)
    return found


def test_no_file_names_the_host_of_an_index():
    searched = ours(REPOSITORY)
    assert REPOSITORY / ".ci" / "audit.py" in searched
    named = {
        str(path.relative_to(REPOSITORY)): found.group()
        for path in searched
        if (found := HOSTS.search(path.read_bytes().decode(errors="ignore")))
    }
    assert named == {}


# --- The audit: what could not be looked up is no good news

GOOD = {"name": "good", "version": "1", "vulns": []}
WEAK = {"name": "weak", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([GOOD, GOOD], 0, "none of 2 pins has a known vulnerability"),
        ([GOOD, WEAK], 1, "weak 2: CVE-1, fixed in ['3']"),
        ([GOOD, UNKNOWN], 1, "unknown: not found"),
        ([WEAK, UNKNOWN], 1, "CVE-1"),
        ([UNKNOWN, UNKNOWN], 0, "audit: left out, none of 2 pins could be looked up"),
    ],
)
def test_the_audit_passes_where_every_pin_was_looked_up(found, status, said):
    done = subprocess.CompletedProcess([], 0, json.dumps({"dependencies": found}), "")
    code, text = audit.outcome(done)
    assert code == status
    assert said in text


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("x.py\nrequests.exceptions.ProxyError: no way", 0, "left out, nobody could be asked: req"),
        ("ERROR: Could not connect to the feed", 0, "left out"),
        ("KeyError: 'vulns'", 1, "audit: failed"),
        ("", 1, "audit: failed"),
    ],
)
def test_an_audit_without_an_answer_passes_only_where_there_is_no_network(error, status, said):
    code, text = audit.outcome(subprocess.CompletedProcess([], 1, "", error))
    assert code == status
    assert said in text


# --- The wheel; `.ci/dist.py` builds and checks one, `.ci/wheel_test.py` runs it


def test_every_file_of_the_package_is_package_data():
    package = REPOSITORY / "src" / "fedsdr"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["fedsdr"]
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in ours(package) if path.suffix != ".py"}
    assert package / "lab" / "demo.toml" in others
    assert others - covered == set()


def test_every_folder_of_modules_is_a_package():
    """A folder without __init__.py is in no wheel."""
    folders = {path.parent for path in ours(REPOSITORY / "src") if path.suffix == ".py"}
    assert [each for each in folders if not (each / "__init__.py").exists()] == []
