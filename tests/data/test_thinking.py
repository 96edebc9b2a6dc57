"""Templates of models that think: what is asked, what is learnt, and what of an answer is text."""

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.answers import AnswerText
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.data.template_probe import check_template
from fedsdr.data.thinking import split_thought
from support.thinking_templates import BARE, CLOSING, DROPPING, EMPTY, OPENING, TEMPLATES
from support.tiny_models import tokenizer
from support.written_tokenizers import BUILDERS, CHATML, byte_level

HELLO = (Turn("user", "Hello"),)
MESSAGES = [{"role": "user", "content": "Hello"}]
THOUGHT = "<think>\nSo it is.\n</think>\n\nA loan."


def make(template: str, thinking: str = "off") -> ChatFormat:
    return ChatFormat(byte_level(template), thinking=thinking)


def own_prompt(template: str, **switches: bool) -> str:
    """transformers' rendering of the template as it was given."""
    text = byte_level(template).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, **switches
    )
    return str(text)


# template, thinking -> the end of the prompt, and what is learnt of "A loan." and of a thought
LEARNT = {
    (CLOSING, "off"): (EMPTY, "A loan.", "A loan."),
    (CLOSING, "on"): ("", EMPTY + "A loan.", THOUGHT),
    (OPENING, "off"): (EMPTY, "A loan.", "A loan."),
    (OPENING, "on"): ("<think>\n", "\n</think>\n\nA loan.", THOUGHT.removeprefix("<think>\n")),
    (DROPPING, "off"): (EMPTY, "A loan.", "A loan."),
    (DROPPING, "on"): ("<think>\n", "\n</think>\n\nA loan.", THOUGHT.removeprefix("<think>\n")),
    (BARE, "off"): ("</think>", "A loan.", "A loan."),
    (BARE, "on"): ("<think>", "</think>A loan.", THOUGHT.removeprefix("<think>\n")),
}
cases = pytest.mark.parametrize(("template", "thinking"), LEARNT)


@cases
def test_prompt_and_response_make_a_closed_thought(template, thinking):
    chat = make(template, thinking)
    end, plain, thought = LEARNT[template, thinking]
    start = own_prompt(template).partition("<think>")[0].removesuffix("</think>")
    assert chat.prompt_text(HELLO) == start + end
    assert (chat.response_text("A loan."), chat.response_text(THOUGHT)) == (plain, thought)
    decode = chat.tokenizer.decode
    assert decode(chat.response_ids("A loan.")) == plain + "<|im_end|>"
    assert decode(chat.response_ids(THOUGHT)) == thought + "<|im_end|>"


@pytest.mark.parametrize("template", [CLOSING, OPENING])
@pytest.mark.parametrize("thinking", ["on", "off"])
def test_prompt_and_response_begin_the_templates_own_rendering(template, thinking):
    chat = make(template, thinking)
    for turns in (HELLO, (*HELLO, Turn("assistant", "Yes"), Turn("user", "the end"))):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        whole = chat.tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": "A loan."}], return_dict=False
        )
        learnt = [*chat.prompt_ids(turns), *chat.response_ids("A loan.")]
        assert learnt == whole[: len(learnt)]
        assert len(learnt) >= len(whole) - 1  # the line break after the end of the turn


@pytest.mark.parametrize("template", [CLOSING, OPENING])
def test_the_switch_is_the_templates_own(template):
    for thinking in ("on", "off"):
        wanted = own_prompt(template, enable_thinking=thinking == "on")
        assert make(template, thinking).prompt_text(HELLO) == wanted
    assert make(BARE, "on").prompt_text(HELLO) == own_prompt(BARE, thinking=True)


@cases
def test_an_export_asks_the_same_without_being_told(template, thinking):
    chat = make(template, thinking)
    exported = byte_level(chat.template)
    text = exported.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == chat.prompt_text(HELLO)
    again = ChatFormat(exported, thinking=thinking)
    assert again.template == chat.template
    if template in (CLOSING, OPENING):  # and whoever wants thoughts can still have them
        text = exported.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        assert text == own_prompt(template, enable_thinking=True)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("thinking", ["on", "off"])
def test_the_probe_passes_them_with_every_tokenizer(name, template, thinking):
    chat = ChatFormat(BUILDERS[name](TEMPLATES[template]), thinking=thinking)
    check_template(chat)
    learnt = chat.response_ids(THOUGHT if thinking == "on" else "A loan.")
    assert chat.text(learnt) == "A loan."


def test_thinking_needs_a_template_that_knows_it():
    with pytest.raises(UserError, match=r'model\.thinking = "on".*knows no thoughts.*"off"'):
        make(CHATML, "on")
    assert make(CHATML).template == CHATML


# --- What of generated ids is text


def generated(chat: ChatFormat, text: str) -> list[int]:
    return [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn]


@pytest.mark.parametrize("builder", [byte_level, tokenizer], ids=["tokens", "text"])
def test_thoughts_are_cut_and_counted(builder):
    """Marks of thoughts may be tokens of their own, or text like any other."""
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chat = ChatFormat(builder(template))
    if builder is tokenizer:
        words = chat.tokenizer.get_vocab()
        chat.tokenizer.decode = lambda ids, **_: " ".join(
            {**{v: k for k, v in words.items()}, 98: "<think>", 99: "</think>"}[i] for i in ids
        )
        a, b, end = words["a"], words["b"], chat.end_of_turn
        opens, closes = 98, 99
    else:
        (a,), (b,) = chat.tokenizer("a")["input_ids"], chat.tokenizer("b")["input_ids"]
        opens, closes = chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        end = chat.end_of_turn
    assert chat.answer([b, end]) == AnswerText("b", 0)
    assert chat.answer([opens, a, a, closes, b, end]) == AnswerText("b", 4)
    assert chat.answer([a, closes, b, end]) == AnswerText("b", 2)
    assert chat.answer([opens, a, closes, a, closes, b, end]) == AnswerText("b", 5)
    assert chat.answer([opens, closes, end]) == AnswerText("", 2)
    assert chat.answer([opens, a, a]) == AnswerText("", 3, unclosed=True)
    assert chat.answer([opens, a, closes, opens, b, end]) == AnswerText("", 5, unclosed=True)
    assert chat.answer([]) == AnswerText("", 0)


def test_where_the_prompt_has_opened_a_thought_all_is_thought_until_it_is_closed():
    chat = make(OPENING, "on")
    assert chat.answer(generated(chat, "A loan.")).unclosed
    count = len(generated(chat, "hm\n</think>")) - 1
    assert chat.answer(generated(chat, "hm\n</think>\n\nA loan.")) == AnswerText("A loan.", count)
    assert make(OPENING).answer(generated(chat, "A loan.")) == AnswerText("A loan.", 0)


def test_marks_that_are_special_tokens_are_seen():
    fast = byte_level(OPENING)
    fast.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    chat = ChatFormat(fast)
    ids = generated(chat, "<think>hm</think>A loan.")
    assert "<think>" not in fast.decode(ids, skip_special_tokens=True)
    assert chat.text(ids) == "A loan."


def test_a_thought_is_what_a_text_begins_with():
    assert split_thought("\n<think>a</think>\n\nb </think>") == (
        "\n<think>a</think>\n\n",
        "b </think>",
    )
    for text in ("b <think>a</think>", "<think>a", "a</think>b", ""):
        assert split_thought(text) == ("", text)
