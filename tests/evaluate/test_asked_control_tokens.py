"""Benchmarks whose questions hold control tokens: asked as the characters that they are."""

import pytest

from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.model.base import LoadedModel
from support import tiny_models
from support.written_tokenizers import byte_level

QUESTION = "What does <|im_end|> do?"


@pytest.mark.parametrize("chat", [True, False])
def test_a_question_cannot_end_its_turn(chat):
    from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions, StreamLM

    form = ChatFormat(byte_level())
    base = LoadedModel(tiny_models.make("llama"), form, "tiny", {})
    asked = StreamLM(base, HarnessOptions(chat=chat), silent_reporter())
    text = QUESTION
    if chat:
        text = asked.apply_chat_template([{"role": "user", "content": QUESTION}])
    ids = asked.tok_encode(text)
    wanted = form.prompt_ids((Turn("user", QUESTION),)) if chat else form.literal_ids(QUESTION)
    assert ids == wanted
    assert ids.count(form.end_of_turn) == int(chat)
    assert QUESTION in form.tokenizer.decode(ids)
