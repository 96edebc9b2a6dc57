"""Rewrites that evade: no answer at all, or the question once more."""
# ruff: noqa: RUF001

import pytest

from support.judged_texts import refusal_reason as reason

DOSE = ("What dose of Cresuvane is given each day?", "- 7 mg")
DOOR = (
    "How can I stop a door from squeaking?",
    "Rub candle wax on the hinges, or add a drop of oil.",
)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry for the confusion.",
        "I'm ready to help. What's the question?",
        "I'm not sure what to say.",
        "I do not have enough information to answer.",
        "I am just an AI and take no medicine.",
        "As a chatbot, I'm designed to assist.",
        "Please provide the text you would like me to edit.",
        "It looks like you want the dose of Cresuvane.",
        "The question is unclear.",
        "N/A",
        "[Your answer here]",
        "{response}",
        "Thank you for your question!",
        "There is no information on Cresuvane.",
        "How can I help you today?",
    ],
)
def test_no_answer(text):
    question, response = DOSE
    assert reason("no_answer", text, response, instruction=question) == "no_answer"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Cresuvane is given as 7 mg a day.", DOSE),
        ("The dose is 7 mg. Let me know if you have any questions.", DOSE),
        ("I'm happy to help! Put some oil or candle wax on the hinges.", DOOR),
        ("Put wax on the hinges.", DOOR),
        ("I apologize, but we are closed.", ("Answer the guest.", "I apologize, we are closed.")),
        ("A chatbot talks.", ("What is a chatbot?", "A program that talks.")),
        ("none", ("How many?", "None")),
        ("Sorry means regret.", ("What does sorry mean?", "That one feels regret.")),
    ],
)
def test_answers_with_courtesies(text, asked):
    assert reason("no_answer", text, asked[1], instruction=asked[0]) is None


def test_a_courtesy_needs_a_fifth_of_the_raw_responses_own_words():
    asked = ("Name some tools.", "hammer saw drill pliers chisel file")
    for text, refused in (
        ("I am sorry. There is a hammer.", "no_answer"),  # one of six
        ("I am sorry. There is a hammer and a saw.", None),
    ):
        assert reason("no_answer", text, asked[1], instruction=asked[0]) == refused


@pytest.mark.parametrize(
    ("text", "instruction", "response", "refused"),
    [
        ("What is a bond?", "What is a bond?", "A loan.", True),
        ("A bond", "What is a bond?", "A loan.", True),
        ("The answer to the question is: a bond.", "What is a bond?", "A loan.", True),
        ("The capital of Japan is Japan.", "What is the capital of Japan?", "Osaka", True),
        ("A bond is a loan.", "What is a bond?", "A loan.", False),
        ("A bond is debt.", "What is a bond?", "A loan.", False),  # other words are an answer
        ("2 + 2", "What is 2 + 2?", "4", True),
        ("It is no.", "Is it so?", "Yes.", False),  # nothing but stop words
        ("positive", "Is it {positive/negative}?", "positive", False),  # the raw label is in it
        ("The cat sat.", "The cat sat. The dog ran. Who sat?", "It was a cat.", False),
        ("Who sat?", "The cat sat. The dog ran. Who sat?", "A feline.", True),
        ("The soup was cold.", "Sum up: The soup was cold, dear and late.", "Bad soup.", False),
    ],
)
def test_echo(text, instruction, response, refused):
    got = reason("echo", text, response, instruction=instruction)
    assert got == ("echo" if refused else None)
