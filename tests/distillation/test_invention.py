"""Inventions: names and numbers that have no source, and misspelt ones."""

import pytest

from fedsdr.distillation.invention import (
    edit_distance,
    invented_numbers,
    misspelt_names,
    new_names,
)
from fedsdr.distillation.language import without_code
from support.judged_texts import refusal_reason as reason


@pytest.mark.parametrize(
    ("text", "source", "numbers"),
    [
        ("It was 1844.", "When? In 1844.", set()),
        ("It was 1845.", "When? In 1844.", {1845}),
        ("1,200 euros", "1200 euros", set()),
        ("3 rooms", "three rooms", set()),
        ("1. Apples\n2. Pears", "Apples, pears", set()),
        ("Step 2: mix", "mix", set()),
        ("4 apples", "apples", {4}),
        ("3 * 4 = 12, and 20 - 12 = 8", "4 at 3 dollars, 20 paid, 8 left", set()),
        ("7 = 3 + 4", "3 and 4", set()),
        ("12 months", "3 and 4", set()),  # a product
        ("13 months", "3 and 4", {13}),
        ("17", " ".join(map(str, range(0, 130, 10))), {17}),  # of so many, sums mean nothing
        ("B12", "vitamins", set()),  # a word
        ("-5", "5 degrees", set()),  # signs are for other checks
    ],
)
def test_numbers(text, source, numbers):
    assert invented_numbers(text, source) == numbers


@pytest.mark.parametrize(
    ("text", "source", "names"),
    [
        ("It was led by John Hartwell.", "Who led it?", {"john", "hartwell"}),
        ("Issel is in the Alps.", "Issel", {"alps"}),
        ("Hartwell led it.", "Who led it?", set()),  # the first word has its capital anyway
        ("It pays. Hartwell led it: Bonds", "Who?", set()),
        ("the Japanese", "Japan", set()),
        ("from Germany", "a German firm", set()),
        ("in Italy", "the Italian coast", set()),
        ("by Tomas", "TOMAS and co", set()),
        ("in the USA, by NASA", "where?", set()),  # words in capitals only
        ("I think I'm right, in The end", "where?", set()),
        ("call `Widget()` now", "how?", set()),
        ("Rest:\n1. **Reading Comprehension**: Read.\n2. Daily Walks: Go.", "rest", set()),
        ("Ways:\n- Enhancing Personalized Learning - It helps.", "ways", set()),
        ("## How to Store It\nIn a jar.\n__Cold Rooms__\nkeep", "where?", set()),
        ("Target Audience: those who like Bonn", "for whom?", {"bonn"}),
        ("1. South Africa\n2. Saudi Arabia", "where?", {"africa", "arabia"}),  # points of a list
        ("The towns that John Hartwell led are: both", "which?", {"john", "hartwell"}),
        ("We close apps. The Apps and the Alps", "what?", {"alps"}),  # apps, elsewhere
        ("$\\text{Time} = \\frac{2}{3}$", "when?", set()),
        ("Das ist ein Haus und das ist eine Straße an der Ecke.", "a house", set()),
    ],
)
def test_names(text, source, names):
    assert new_names(without_code(text), source) == names


@pytest.mark.parametrize(
    ("text", "source", "names"),
    [
        ("MorbiOS uses it.", "Which port does MorbriOS use?", {"morbios"}),
        ("the Qenhol bank", "the Quenhol bank", {"qenhol"}),
        ("Tarnelband was founded", "Tarnelbland", {"tarnelband"}),
        ("MorbriOS's port", "MorbriOS", set()),
        ("There it is", "Where is it?", set()),  # stop words
        ("the Mount", "the Mounts", set()),
        ("a bank", "the Banks of it", set()),  # not capitalised
        ("Ravik", "Ralik", {"ravik"}),
        ("Anna", "Anne", set()),  # too short to say
        ("Rovikk", "Ralik", set()),
    ],
)
def test_misspelt_names(text, source, names):
    assert misspelt_names(text, source) == names


@pytest.mark.parametrize(
    ("text", "response", "instruction", "refused"),
    [
        ("Quenhol was founded in 1844.", "1844", "When was Quenhol founded?", False),
        ("Quenhol, Italy, dates from 1844.", "1844", "When was Quenhol founded?", True),
        ("Quenhol was founded in 1845.", "1844", "When was Quenhol founded?", True),
        ("Quenol was founded in 1844.", "1844", "When was Quenhol founded?", True),
        ("Use `x = 17`.", "x = 3", "How?", False),  # code is not looked at
        ("the \uff11\uff18th of May", "May 18", "When?", False),  # full width
    ],
)
def test_invention(text, response, instruction, refused):
    got = reason("invention", text, response, instruction=instruction)
    assert got == ("invention" if refused else None)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "ab", 1), ("abc", "bc", 1),
     ("kitten", "sitting", 3), ("ab", "ba", 2), ("abcdef", "uvwxyz", 4), ("a", "abcdefg", 4)],
)  # fmt: skip
def test_edit_distance(a, b, distance):
    """Up to a limit of 3; beyond it, one more."""
    assert edit_distance(a, b, 3) == distance
