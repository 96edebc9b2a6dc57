"""Checks against gold answers, numbers and labels: what counts as stated, and what does not."""
# ruff: noqa: RUF001

import pytest

from fedsdr.distillation.answers import affirms_words, contains_words, named_options
from fedsdr.distillation.numerals import final_number, numbers_in, worded_numbers
from support.judged_texts import refusal_reason as reason


@pytest.mark.parametrize(
    ("text", "answer", "refused"),
    [
        ("The value is Amber  Willow.", "amber willow", False),
        ("amber willows", "amber willow", True),
        ("willow amber", "amber willow", True),
        ("amber or willow", "amber willow", True),
        ("anything", "", False),  # a record without a gold answer
        ("", "x", True),
        ("it is C++", "c++", False),
        ("it is C", "c++", True),
        ("420", "42", True),
        ("42.", "42", False),
        ("groß", "gro", True),
        ("It costs 4.5 euros.", "4", True),
        ("It costs 4. It is blue.", "4", False),
        ("It was -4 degrees", "4", True),
        ("14", "4", True),
        ("1,200 euros", "1200", False),
        ("1200 euros", "1,200", False),
        ("1 200 euros", "1,200", False),
        ("in the cafe\u0301", "caf\u00e9", False),  # an accent of its own
        ("\uff30\uff41\uff52\uff49\uff53", "Paris", False),  # of full width
        ("It is not Paris.", "Paris", True),
        ("It isn't Paris.", "Paris", True),
        ("It is not Lyon, it is Paris.", "Paris", False),
        ("Not only Paris", "Paris", False),
        ("Lyon rather than Paris", "Paris", True),
        ("Not Paris. Well, Paris.", "Paris", False),
        ("There are three.", "3", False),
        ("There are three.", "3 rooms", False),
        ("There are four.", "3", True),
    ],
)
def test_answer(text, answer, refused):
    assert reason("answer", text, answer=answer) == ("wrong_answer" if refused else None)


@pytest.mark.parametrize(
    ("text", "response", "answer", "refused"),
    [
        ("so it is 5", "2+3 = 5\n#### 5", "", False),
        ("so it is 6", "2+3 = 5\n#### 5", "", True),
        ("#### 1002", "#### 1,002", "", False),
        ("#### 1,002.50", "#### 1002.5", "", False),
        ("it costs 3", "it costs 2", "", False),  # no mark: the number is not the answer
        ("#### -7", "#### -7", "", False),
        ("#### 7", "#### -7", "", True),
        ("$0.50", "#### .50", "", False),
        ("half a dollar, $.50", "#### 0.5", "", False),
        ("#### 5 after 3 steps", "#### 5", "", False),  # the mark comes before the last number
        ("#### 3 then #### 5", "#### 5", "", False),
        ("5 #### done", "#### 5", "", True),
        ("five", "#### 5", "", False),
        ("six", "#### 5", "", True),
        ("18 eggs (see step 3)", "#### 18", "", False),
        ("The answer is 12 (not 13).", "#### 12", "", False),
        ("It is 12, not 13.", "#### 12", "", False),
        ("x = 2. Checking: 2 * 3 = 6", "#### 2", "", False),
        ("She makes $18 a day at the market, 7 days a week.", "#### 18", "", False),
        ("1/2", "#### 0.5", "", False),
        ("1,5", "#### 1.5", "", False),
        ("1 000 000", "#### 1000000", "", False),
        ("1.2e1", "#### 12", "", False),
        ("50", "#### 50%", "", False),
        ("It is \\boxed{10}, of 12.", "#### 10", "", False),
        ("The sum of 17 and 26 is \\(43\\).", "#### 43", "", False),
        ("3-5 days", "#### 5", "", False),
        ("3-5 days", "#### -5", "", True),
        ("2024-07-07", "#### 7", "", True),
        ("May-2024", "#### 2024", "", False),
        ("The answer is 8 dollars. He has 3 coins.", "#### 8", "", False),
        ("The answer is 3 + 5 = 8.", "#### 8", "", False),
        ("", "#### 5", "", True),
        ("anything 9", "no number", "", False),
        ("it is 42", "7", "42", False),  # the gold answer counts, not the raw text
        ("it is 7", "7", "42", True),
        ("costs 5,", "", "5", False),
        ("first 1, then 2.", "", "2", False),
        ("It is 47 metres.", "", "47 m", False),
        ("It is 46 metres.", "", "47 m", True),
        ("In room 3 since 1990", "", "Room 3 of the old mill", False),  # no number as such
        ("nothing", "", "K7", False),
    ],
)
def test_number(text, response, answer, refused):
    assert reason("number", text, response, answer) == ("wrong_number" if refused else None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234,567", 1234567),
        ("3.14", 3.14),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("#### $1,000.", 1000),
        ("####", None),
        ("none", None),
        ("1.", 1),
        ("a - 5", 5),
        ("at −5 degrees", -5),
        ("twenty-one", 21),
        ("two, then three", 3),
        ("1/0", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1, 2 and 3", [1, 2, 3]),
        ("1,2,3", [1, 2, 3]),
        ("B12, covid-19, x2", [19]),
        ("version 3.11.2", [3.11]),
        ("$1,234.50 and 7kg", [1234.5, 7]),
        ("8:30 on 7/7/2024", [8, 30, 7, 7, 2024]),
        ("(-3) to 4", [-3, 4]),
    ],
)
def test_numbers_in_running_text(text, values):
    assert [number.value for number in numbers_in(text)] == values


def test_a_number_knows_its_place():
    text = "about -1,200.5 euros"
    (number,) = numbers_in(text)
    assert text[number.start : number.end] == "-1,200.5"


def test_numbers_in_words():
    assert worded_numbers("Three of a dozen, ninety-nine times; one-way") == [3, 12, 99]


CHOICES = "What is it? {negative/neutral/positive}"


@pytest.mark.parametrize(
    ("text", "response", "instruction", "refused"),
    [
        ("It is Positive.", "positive", CHOICES, False),
        ("It is negative.", "positive", CHOICES, True),
        ("positive, not negative", "positive", CHOICES, False),
        ("positive and negative", "positive", CHOICES, True),  # it names another, too
        ("more positive than negative", "positive", CHOICES, False),
        ("not positive", "positive", CHOICES, True),
        ("I would say it isn't positive at all", "positive", CHOICES, True),
        ("hardly positive", "positive", CHOICES, True),
        ("Not bad. Positive!", "positive", CHOICES, False),
        ("I'm not sure, but I'll try: positive", "positive", CHOICES, True),
        ("It could be positive.", "positive", CHOICES, True),
        ("It could be positive.", "It could be positive.", CHOICES, False),
        ("I cannot say", "positive", CHOICES, True),
        ("Yes, no doubt.", "yes", "{yes/no}", False),
        ("There is no price in it: yes", "yes", "{yes/no}", False),
        ("No, there is none.", "no", "{yes/no}", False),
        ("No.", "yes", "{yes/no}", True),
        ("not true", "not true", "{true/not true}", False),
        ("true", "not true", "{true/not true}", True),
        ("a thing", "A", "{A/B/C}", True),
        ("A", "A", "{A/B/C}", False),
        ("a", "A", "{A/B/C}", False),
        ("A, as the text says", "A", "{A/B/C}", False),
        ("The answer is A because it fits", "A", "{A/B/C}", False),
        ("positively", "positive", CHOICES, True),
        ("neutral", "both neutral and positive", CHOICES, True),
        ("positive or neutral", "both neutral and positive", CHOICES, False),
        ("strong rise", "strong rise", "{ strong rise / mild fall }", False),
        ("rise", "strong rise", "{strong rise/mild fall}", True),
        ("anything", "positive", "What is it?", False),
        ("anything", "positive", "{positive}", False),  # one word in braces is no choice
        ("anything", "positive", "a / b", False),
    ],
)
def test_label(text, response, instruction, refused):
    got = reason("label", text, response, instruction=instruction)
    assert got == ("wrong_label" if refused else None)


def test_only_the_last_turn_offers_labels():
    assert reason("label", "x y", "x") is None  # the system turn of `record` offers {x/y}


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [("a b c", "b c", True), ("a b c", "c b", False), ("ab", "a", False), ("a-b", "b", True)],
)
def test_whole_words(text, phrase, found):
    assert contains_words(text, phrase) is found


@pytest.mark.parametrize(
    ("text", "phrase", "affirmed"),
    [
        ("It is Paris.", "Paris", True),
        ("never Paris", "Paris", False),
        ("No doubt Paris", "Paris", True),
        ("not in the big city of Paris", "Paris", True),  # too far from the negation
        ("Not Lyon but Paris", "Paris", True),
        ("Lyon", "Paris", False),
    ],
)
def test_affirmed_words(text, phrase, affirmed):
    assert affirms_words(text, phrase) is affirmed


def test_options_that_are_parts_of_others_are_not_named():
    options = ["rise", "strong rise", "fall"]
    assert named_options("a strong rise", options) == {"strong rise"}
    assert named_options("a strong rise, then a rise and no fall", options) == {
        "rise",
        "strong rise",
    }
