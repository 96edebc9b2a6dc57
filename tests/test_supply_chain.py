"""Whatever `make install` brings in is pinned: every distribution, by its exact version."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    benches = {"trl"}  # of the extra "bench", which is not installed for tests
    assert {canonicalize_name(pin.name) for pin in PINS} - closure("dev") == benches


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_a_pin_is_one_version_from_the_index(pin):
    assert pin.url is None
    [one] = pin.specifier
    assert one.operator == "=="
    assert re.fullmatch(r"[0-9][0-9a-z.]*", one.version)


def test_no_requirement_of_ours_goes_round_the_index():
    for extra in PROJECT["optional-dependencies"]:
        assert [each.name for each in wanted(extra) if each.url] == []
