"""Chat templates: which ids are the response, what ends a turn, and what does not fit."""

from datetime import datetime
from importlib import resources

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from fedsdr.core.errors import UserError
from fedsdr.data.example import Example
from fedsdr.data.records import Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.lab.pretrain import build_tokenizer
from fedsdr.lab.world import WorldOptions, build_world
from fedsdr.model.identity import chat_identity
from support.tiny_models import CHAT, tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The prompt of this one ends in no generation prompt, and its answers begin with a space.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def shipped(name: str) -> str:
    return (resources.files("fedsdr.data") / "templates" / f"{name}.jinja").read_text("utf-8")


def chatml(special: str):
    """A tokenizer whose turn marks are special tokens, by name or by their own flag alone."""
    fast = tokenizer(CHATML)
    marks = ["<|im_start|>", "<|im_end|>"]
    if special == "named":
        fast.add_special_tokens({"extra_special_tokens": marks})
    else:
        fast.add_tokens([AddedToken(mark, special=True) for mark in marks])
    return fast


def lab():
    return build_tokenizer(build_world(WorldOptions(entities=4)))


# name -> tokenizer, `template` argument, the template's text, the token that ends a turn
FORMATS = {
    "lab": (lab, "auto", None, "<end>"),
    "ours": (tokenizer, "auto", CHAT, "<end>"),
    "chatml": (lambda: chatml("named"), "auto", CHATML, "<|im_end|>"),
    "chatml, flags": (lambda: chatml("flagged"), "auto", CHATML, "<|im_end|>"),
    "llama 2": (lambda: tokenizer(LLAMA2), "auto", LLAMA2, "<end>"),
    "no template": (lambda: tokenizer(None), "auto", shipped("alpaca"), "<end>"),
    "alpaca": (tokenizer, "alpaca", shipped("alpaca"), "<end>"),
    "plain": (tokenizer, "plain", shipped("plain"), "<end>"),
}
formats = pytest.mark.parametrize("name", FORMATS)
TURNS = (
    Turn("user", "name one"),
    Turn("assistant", "a b"),
    Turn("user", "name the sum of two"),
)


def make(name: str) -> ChatFormat:
    build, template, *_ = FORMATS[name]
    return ChatFormat(build(), template)


def joint(chat: ChatFormat, name: str, *turns: Turn) -> list[int]:
    """The ids of a whole conversation, rendered and tokenised in one piece."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text = chat.tokenizer.apply_chat_template(
        messages, chat_template=FORMATS[name][2], tokenize=False
    )
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


@formats
def test_the_token_that_ends_a_turn_is_found(name):
    chat = make(name)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn) == FORMATS[name][3]


def test_eos_ends_a_turn_where_the_template_has_no_special_token():
    chat = ChatFormat(tokenizer("{% for m in messages %}{{ m['content'] }} . {% endfor %}"))
    assert chat.end_of_turn == chat.tokenizer.eos_token_id


@formats
def test_prompt_and_response_are_the_joint_text(name):
    chat = make(name)
    for turns in (TURNS[:1], TURNS):
        example = chat.encode(Record(turns, ""), "three of four", 100)
        assert example is not None
        whole = joint(chat, name, *turns, Turn("assistant", "three of four"))
        assert [*example.prompt, *example.response] == whole


@formats
def test_exactly_the_response_is_learnt(name):
    chat = make(name)
    words = "three of four" if name != "lab" else "rx : amber willow ;"
    example = chat.encode(Record(TURNS, "never used"), words, 100)
    assert example is not None
    got = chat.tokenizer.convert_ids_to_tokens(list(example.response))
    assert got == [*words.split(), FORMATS[name][3]]
    assert example.prompt == tuple(chat.prompt_ids(TURNS))
    assert len(example) == len(example.prompt) + len(example.response)


@formats
def test_generated_ids_become_text_without_marks(name):
    chat = make(name)
    words = "three of four" if name != "lab" else "rx : amber willow ;"
    assert chat.text(chat.response_ids(words)) == words
    assert chat.text([]) == ""


def test_the_shipped_templates_say():
    system = (Turn("system", "a"), *TURNS)
    alpaca, plain = make("alpaca"), make("plain")
    assert plain.prompt_text(system) == "<s>a\nname one\na b<end>name the sum of two\n"
    assert alpaca.prompt_text(TURNS[:1]) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nname one\n\n### Response:\n"
    )
    assert alpaca.prompt_text(system) == (
        "<s>a\n\n### Instruction:\nname one\n\n### Response:\na b<end>\n\n"
        "### Instruction:\nname the sum of two\n\n### Response:\n"
    )


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_the_template_alone_adds_special_tokens(template):
    fast = tokenizer(None)
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 2), ("<end>", 3)]
    )
    assert fast("a")["input_ids"] == [2, *fast("a", add_special_tokens=False)["input_ids"], 3]
    chat = ChatFormat(fast, template)
    example = chat.encode(Record(TURNS[:1], ""), "b", 100)
    assert example is not None
    whole = [*example.prompt, *example.response]
    assert whole[0] == 2
    assert whole[-1] == 3
    assert 2 not in whole[1:]
    assert 3 not in whole[:-1]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_tokenizer_without_bos_works(template):
    fast = tokenizer(template)
    fast.bos_token = None
    assert "None" not in ChatFormat(fast).prompt_text(TURNS)


# --- System role


def test_a_system_role_that_the_template_refuses_joins_the_first_user_turn():
    chat = ChatFormat(tokenizer(LLAMA2))
    merged = (Turn("user", "a b\n\nname one"), *TURNS[1:])
    assert chat.prompt_text((Turn("system", "a b"), *TURNS)) == chat.prompt_text(merged)
    assert "[INST] a b\n\nname one [/INST]" in chat.prompt_text(merged)


def test_a_system_role_that_the_template_knows_stays_a_turn():
    chat = make("chatml")
    assert chat.prompt_text((Turn("system", "a b"), Turn("user", "c"))) == (
        "<|im_start|>system\na b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_errors_of_a_template_are_raised():
    chat = ChatFormat(tokenizer("{{ raise_exception('always') }}"))
    for turns in (TURNS, (Turn("system", "a"), *TURNS)):
        with pytest.raises(UserError, match=r"always.*model\.template"):
            chat.prompt_text(turns)


# --- Length


def test_a_long_response_is_cut_without_its_end_of_turn():
    chat = make("ours")
    record, words = Record(TURNS, ""), "one two three four five"
    whole = chat.encode(record, words, 100)
    assert whole is not None
    assert len(whole.response) == 6
    start = len(whole.prompt)
    for room in range(-2, 9):
        example = chat.encode(record, words, start + room)
        if room < 1:
            assert example is None
        else:
            assert example == Example(whole.prompt, whole.response[:room])
            assert (chat.end_of_turn in example.response) == (room >= 6)


# --- Choosing a template


def test_a_template_may_be_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}ß {{ m['content'] }}{% endfor %}", encoding="utf-8")
    assert ChatFormat(tokenizer(), str(file)).prompt_text(TURNS[:1]) == "ß name one"


@pytest.mark.parametrize("name", ["chatml", "Alpaca", "no/such.jinja", ""])
def test_an_unknown_template_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match=r"model\.template = .*'auto', 'alpaca', 'plain'"):
        ChatFormat(tokenizer(), name)


# --- A tokenizer's several templates

SEVERAL = {"default": CHAT, "tool_use": CHAT.replace("<ask>", "<answer>")}


@pytest.mark.parametrize(
    ("template", "text", "source"),
    [
        ("auto", "<ask> name one <answer> ", "the tokenizer's 'default'"),
        ("name:tool_use", "<answer> name one <answer> ", "the tokenizer's 'tool_use'"),
    ],
)
def test_one_of_several_templates_is_chosen_by_name(tmp_path, template, text, source):
    tokenizer(SEVERAL).save_pretrained(tmp_path)
    chat = ChatFormat(AutoTokenizer.from_pretrained(tmp_path), template)
    assert (chat.prompt_text(TURNS[:1]), chat.source) == (text, source)


@pytest.mark.parametrize(
    ("own", "template", "message"),
    [
        ({"rag": CHAT, "use": CHAT}, "auto", r"'rag', 'use'.*none called 'default'.*\"name:rag\""),
        (SEVERAL, "name:rag", r"'default', 'tool_use'.*none called 'rag'.*\"name:default\""),
        (CHAT, "name:default", "a single chat template.*'auto'"),
        (None, "name:default", "no chat template.*'auto'"),
    ],
)  # fmt: skip
def test_a_template_that_is_not_there_is_refused_with_those_that_are(own, template, message):
    with pytest.raises(UserError, match=message):
        ChatFormat(tokenizer(own), template)


@pytest.mark.parametrize(
    ("name", "source"),
    [("no template", "alpaca, for the tokenizer has none"), ("ours", "the tokenizer's own")],
)
def test_a_format_says_which_template_it_uses(name, source):
    assert make(name).source == source


# --- What a template leaves out

SILENT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<ask> {{ m['content'] }} {% endif %}"
    "{% endfor %}<answer> "
)
LAST = "<ask> {{ messages[-1]['content'] }} <answer> "


def test_a_system_turn_that_the_template_leaves_out_joins_the_first_user_turn():
    chat = ChatFormat(tokenizer(SILENT))
    text = chat.prompt_text((Turn("system", "a b"), *TURNS))
    assert text == "<ask> a b\n\nname one <ask> a b <ask> name the sum of two <answer> "


def test_a_template_that_leaves_out_other_turns_is_refused_where_it_does():
    chat = ChatFormat(tokenizer(LAST))
    assert chat.prompt_text(TURNS[:1]) == "<ask> name one <answer> "
    assert chat.prompt_text((Turn("system", "a"), TURNS[0])) == "<ask> a\n\nname one <answer> "
    for turns in (TURNS, (Turn("system", "a"), *TURNS)):
        with pytest.raises(UserError, match=r"it leaves out what the .*model.template to another"):
            chat.prompt_text(turns)
    assert "name one" in ChatFormat(tokenizer(LAST), "alpaca").prompt_text(TURNS)


# --- Templates that read the clock

CLOCK = (
    "{% if strftime_now is defined %}{% set now = strftime_now('%-d %b %Y %H:%M:%S') %}{% endif %}"
    "{% for m in messages %}<ask> {{ now }} {{ m['content'] }} {% endfor %}<answer> "
)


@pytest.fixture
def years(monkeypatch):
    """Each look at the clock is a year after the last one."""

    class Clock(datetime):
        looks = 0

        @classmethod
        def now(cls, tz=None):
            cls.looks += 1
            return cls(2030 + cls.looks, 1, 1)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("white", ["", "\n", "  ", "\n  {#- note #}\n"])
def test_a_template_that_prints_the_time_prints_the_recipes(years, white):
    fast = tokenizer(white + CLOCK)
    moving = [fast.apply_chat_template(HELLO, tokenize=False) for _ in range(2)]
    assert moving[0] != moving[1], "the clock of this test does not go"
    year = "1 Jan 2031 00:00:00"
    wanted = moving[0].replace(year, "26 Jul 2024 00:00:00")
    texts = {ChatFormat(fast).prompt_text((Turn("user", "a b"),)) for _ in range(2)}
    assert texts == {wanted}
    other = ChatFormat(fast, date="2025-02-03")
    assert "3 Feb 2025" in other.prompt_text((Turn("user", "a b"),))
    assert chat_identity(other) != chat_identity(ChatFormat(fast))
    # What is exported needs nothing of ours to print the same, and is known for the same.
    fast.chat_template = other.template
    assert fast.apply_chat_template(HELLO, tokenize=False) == moving[0].replace(
        year, "3 Feb 2025 00:00:00"
    )
    assert (ChatFormat(fast).template, ChatFormat(fast).date) == (other.template, "")


HELLO = [{"role": "user", "content": "a b"}]


def test_a_template_without_a_clock_is_left_as_it_is():
    plain = ChatFormat(tokenizer(), date="2025-02-03")
    assert (plain.template, plain.date) == (CHAT, "")
