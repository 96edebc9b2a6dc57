"""The language of a text: script and function words, and where nothing can be said."""
# ruff: noqa: RUF001

import pytest

from fedsdr.distillation.language import letter_scripts, text_language, without_code
from fedsdr.distillation.phrases import FUNCTION_WORDS
from support.judged_texts import refusal_reason as reason

TEXTS = {
    "english": "A bond is a loan to a firm or to the state, and it pays interest.",
    "german": "Eine Anleihe ist ein Kredit an eine Firma oder an den Staat.",
    "french": "Une obligation est un prêt à une entreprise ou à l'État, avec des intérêts.",
    "spanish": "Un bono es un préstamo para una empresa, y los intereses son del dueño.",
    "italian": "Una obbligazione è un prestito che si fa a una impresa con gli interessi.",
    "portuguese": "Um título é um empréstimo a uma empresa ou ao Estado, e não é uma ação.",
    "dutch": "Een obligatie is een lening aan een bedrijf of aan de staat, met een rente.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages(language):
    assert TEXTS.keys() == FUNCTION_WORDS.keys()
    assert text_language(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "Bonjour.", "7 mg", "x = the_value + 1", "Ein Haus, a house"])
def test_short_texts_have_no_language(text):
    assert text_language(text) == ""


@pytest.mark.parametrize(("new", "raw"), [(a, b) for a in TEXTS for b in TEXTS])
def test_a_rewrite_in_another_language_is_refused(new, raw):
    found = reason("language", TEXTS[new], TEXTS[raw])
    assert found == (None if new == raw else "language")


@pytest.mark.parametrize(
    ("text", "response", "instruction", "refused"),
    [
        ("债券是一种贷款。", "A bond is a loan.", "q", True),
        ("A bond is a 贷款.", "A bond is a loan.", "q", True),  # mixed in
        ("Bonds: 债券", "In Chinese: 债券", "q", False),
        ("债券是贷款。", "A bond is a loan.", "Translate: 债券是贷款。", True),  # as it was asked
        ("A bond is a loan.", "债券是一种贷款，支付利息。", "解释", True),
        ("SQL", "SQL 是一种查询语言。", "什么是 SQL？", False),
        ("ロンはカタカナ", "ローンは借金です", "q", False),  # Japanese is written in three scripts
        ("α + β = Δ", "a + b = c", "q", False),  # symbols
        ("5 µm, 10 Ω", "5 um, 10 Ohm", "q", False),
        ("ls -la", "Тогда так: ls", "q", False),
        ("Да", "a b", "Say yes in Russian: да", False),  # the raw response is too short to say
        ("12", "债券是一种贷款，支付利息。", "q", False),
        ("```\n# 打印\nprint(1)\n```", "print(1) prints one", "q", False),
    ],
)
def test_scripts(text, response, instruction, refused):
    got = reason("language", text, response, instruction=instruction)
    assert got == ("language" if refused else None)


def test_letters_by_script():
    assert letter_scripts("Aé я 7 漢か ー `код`") == {"LATIN": 2, "CYRILLIC": 1, "CJK": 3}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a `b` c", "a   c"),
        ("a ```py\nb\n``` c", "a   c"),
        ("a ```\nb", "a  "),  # never closed
        ("see https://a.example/b?c d", "see   d"),
    ],
)
def test_text_without_code(text, left):
    assert without_code(text) == left
