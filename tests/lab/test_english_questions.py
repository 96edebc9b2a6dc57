"""The general questions: enough, well formed, without a pattern, and right where computable."""

import re
from collections import Counter

from fedsdr.lab.english.questions import general_questions

ARITHMETIC = re.compile(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?")
RESULT = {
    "plus": int.__add__,
    "minus": int.__sub__,
    "times": int.__mul__,
    "divided by": int.__floordiv__,
}


def test_there_are_at_least_300_different_questions_with_four_different_choices():
    questions = general_questions()
    assert len(questions) >= 300
    assert len({each.question.casefold() for each in questions}) == len(questions)
    for each in questions:
        assert len({choice.casefold().strip() for choice in each.choices}) == 4, each
        assert all(choice == choice.strip() != "" for choice in each.choices), each
        assert each.question.endswith("?")
        assert 0 <= each.answer < 4


def test_the_right_choice_is_at_each_place_equally_often():
    counts = Counter(each.answer for each in general_questions())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_first_questions_are_of_all_topics():
    topics = Counter(each.topic for each in general_questions())
    first = Counter(each.topic for each in general_questions()[:60])
    assert set(first) == set(topics)
    assert all(abs(60 * topics[t] / topics.total() - first[t]) <= 2 for t in topics)


def test_sums_are_right_and_no_other_choice_is():
    sums = [each for each in general_questions() if ARITHMETIC.match(each.question)]
    assert len(sums) >= 20
    for each in sums:
        a, operation, b = ARITHMETIC.match(each.question).groups()
        right = RESULT[operation](int(a), int(b))
        assert [int(choice) == right for choice in each.choices] == [
            place == each.answer for place in range(4)
        ]
        assert operation != "divided by" or int(a) % int(b) == 0
