"""The probe at load: templates whose prompts are not how they begin a conversation's answer."""

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat, TemplateRefusalError
from fedsdr.data.template_probe import check_template
from support.written_tokenizers import BUILDERS, CHATML, byte_level

HELLO = (Turn("user", "Hello"),)
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}"


def ask(text: str) -> str:
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


def zephyr(end: str) -> str:
    """Its prompt has no line break, and its answers begin with one."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + end + "\n{% endfor %}"
    ) + ask("<|im_start|>assistant")


SOUND = {
    "chatml": (CHATML, "A loan."),
    "always asks": (EACH + "<|im_start|>assistant\n", "\nA loan."),
    "zephyr": (zephyr("<|im_end|>"), "\nA loan."),
    "no prompt": (EACH, "<|im_start|>assistant\nA loan."),
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}",
        " A loan. ",
    ),
    "llama 2, close": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        "A loan.",
    ),
    "trims": (
        CHATML.replace("m['content']", "m['content'].strip()"),
        "A loan.",
    ),
    "strict": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        + TURN
        + "{% endfor %}"
        + ask("<|im_start|>assistant\n"),
        "A loan.",
    ),
}


@pytest.mark.parametrize("tokenizer", BUILDERS)
@pytest.mark.parametrize("name", SOUND)
def test_sound_templates_pass_and_are_learnt_as_they_write(name, tokenizer):
    template, text = SOUND[name]
    chat = ChatFormat(BUILDERS[tokenizer](template))
    check_template(chat)
    assert chat.response_text("A loan.") == text
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "A loan."}]
    joint = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    whole = chat.tokenizer(joint, add_special_tokens=False)["input_ids"]
    learnt = [*chat.prompt_ids(HELLO), *chat.response_ids("A loan.")]
    assert learnt == whole[: len(learnt)]


def test_a_response_is_learnt_with_the_white_space_that_the_template_leaves():
    for name, text in (("trims", "a\n\n b"), ("chatml", "\n a\n\n b \n")):
        chat = ChatFormat(byte_level(SOUND[name][0]))
        assert chat.response_text("\n a\n\n b \n") == text


UNSOUND = {
    "another role": (EACH + ask("<|im_start|>model\n"), r"asks for .*model\\n'.*assistant\\nIt is"),
    "no answers": (
        "{% for m in messages %}{% if m.role != 'assistant' %}" + TURN + "{% endif %}{% endfor %}"
        "<|im_start|>assistant\n",
        "what is learnt would not be what is asked",
    ),
    "upper case": (CHATML.replace("m['content']", "m['content'] | upper"), "leaves out what the"),
    "answers cut": (
        CHATML.replace("m['content']", "m['content'].split(':')[0]"),
        "leaves out or alters words of the response",
    ),
    "one round": ("{{ raise_exception('never') }}", "never"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_others_are_refused_with_what_they_write(name):
    template, message = UNSOUND[name]
    with pytest.raises(UserError, match=message):
        check_template(ChatFormat(byte_level(template)))


def test_shapes_that_a_template_refuses_are_left_to_the_records_that_have_them():
    single = "{% if messages|length > 2 %}{{ raise_exception('one question') }}{% endif %}" + CHATML
    chat = ChatFormat(byte_level(single))
    check_template(chat)
    with pytest.raises(TemplateRefusalError, match="one question"):
        chat.prompt_text((*HELLO, Turn("assistant", "Yes"), *HELLO))


def test_every_word_of_a_response_is_learnt_or_it_is_refused():
    cut = CHATML.replace("m['content']", "m['content'].split('|')[0]")
    chat = ChatFormat(byte_level(cut))
    check_template(chat)
    assert chat.response_text("a b") == "a b"
    with pytest.raises(TemplateRefusalError, match="alters words of the response"):
        chat.response_ids("a | b")


def test_a_tokenizer_that_writes_a_word_otherwise_at_the_start_is_learnt_as_in_the_middle():
    chat = ChatFormat(BUILDERS["pieces"]())
    tokens = chat.tokenizer.convert_ids_to_tokens
    assert tokens(chat.tokenizer("Yes", add_special_tokens=False)["input_ids"]) == ["▁Yes"]
    assert tokens(chat.response_ids("Yes")) == ["Yes", "<|im_end|>"]
    bare = CHATML.replace(r"assistant\n'", "assistant'")
    marked = ChatFormat(BUILDERS["legacy pieces"](bare.replace("m['role'] + '\\n'", "m['role']")))
    assert tokens(marked.response_ids("Yes")) == ["Yes", "<|im_end|>"]
