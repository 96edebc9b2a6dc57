"""What begins a prompt: as tokenizer or chat template have it, never missing or twice."""

from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.data.template import ChatFormat
from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions, StreamLM
from fedsdr.evaluate.benchmarks.openings import opened_ids, own_opening, shortened_ids
from fedsdr.model.base import LoadedModel
from fedsdr.model.identity import model_identity
from support import tiny_models
from support.word_tokenizers import opening_tokenizer

BOS, END = tiny_models.IDS["bos_token_id"], tiny_models.IDS["eos_token_id"]
PRINTS = "{{ bos_token }} " + tiny_models.CHAT  # as Gemma's and Llama's templates do
TOKENIZERS = {
    "adds BOS": (True, False),
    "adds nothing": (False, False),
    "adds BOS and EOS": (True, True),
}


def harness_model(tokenizer: Any, **options: Any) -> StreamLM:
    model, chat = tiny_models.make("llama"), ChatFormat(tokenizer)
    base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
    return StreamLM(base, HarnessOptions(**options), silent_reporter())


def prompts_of(lm: StreamLM) -> list[list[int]]:
    """A prompt as it is read for a likelihood, and twice, once padded, for generation."""
    texts = ["red cat", "red cat sees the dog"]
    if lm.templated:
        texts = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
    ids, mask = lm.tok_batch_encode(texts)
    written = [row[row_mask.bool()].tolist() for row, row_mask in zip(ids, mask, strict=True)]
    return [lm._encode_pair(texts[0], " cat")[0], *written]


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("added", TOKENIZERS)
def test_plain_prompts_begin_with_bos_as_the_tokenizer_has_it_or_as_asked(added, bos):
    lm = harness_model(opening_tokenizer(*TOKENIZERS[added]), bos=bos)
    wanted = TOKENIZERS[added][0] if bos is None else bos
    for ids in prompts_of(lm):
        assert (ids[0] == BOS, ids.count(BOS), END in ids) == (wanted, wanted, False)
    assert lm.begins_with_bos is wanted


@pytest.mark.parametrize("bos", [None, True])
@pytest.mark.parametrize("prints", [True, False])
@pytest.mark.parametrize("added", TOKENIZERS)
def test_a_chat_template_brings_its_own_bos_and_gets_no_second_one(added, prints, bos):
    template = PRINTS if prints else tiny_models.CHAT
    lm = harness_model(opening_tokenizer(*TOKENIZERS[added], template), chat=True, bos=bos)
    wanted = prints or bool(bos)
    for ids in prompts_of(lm):
        assert (ids[0] == BOS, ids.count(BOS), END in ids) == (wanted, wanted, False)
    assert lm.begins_with_bos is wanted


@pytest.mark.parametrize("added", ["adds BOS", "adds nothing"])
def test_plain_prompts_are_tokenised_as_by_lm_eval(added):
    tokenizer = opening_tokenizer(*TOKENIZERS[added])
    mine, theirs = (
        harness_model(tokenizer),
        HFLM(pretrained=tiny_models.make("llama"), tokenizer=tokenizer),
    )
    for context, continuation in (("red cat", " sees"), ("red ", "cat")):
        assert mine._encode_pair(context, continuation) == theirs._encode_pair(
            context, continuation
        )


@pytest.mark.parametrize("added", ["adds BOS", "adds nothing"])
def test_a_bos_that_a_plain_prompt_spells_is_text(added):
    """lm-eval reads it as the token, and takes it that all prompts of the batch have theirs."""
    lm = harness_model(opening_tokenizer(*TOKENIZERS[added]))
    rows, _ = lm.tok_batch_encode(["<s> red cat", "red cat"])
    wanted = int(TOKENIZERS[added][0])
    assert [row.tolist().count(BOS) for row in rows] == [wanted, wanted]


def test_prompts_of_a_batch_are_looked_at_one_by_one():
    """Where one of them has its BOS already, lm-eval takes it that all have."""
    lm = harness_model(opening_tokenizer(False, False, tiny_models.CHAT), chat=True, bos=True)
    rows, _ = lm.tok_batch_encode(["<s> red cat", "red cat"])
    assert rows[0].tolist() == rows[1].tolist()
    assert rows[0].tolist().count(BOS) == 1


def test_an_opening_is_whatever_precedes_a_text():
    assert own_opening(opening_tokenizer(False, eos=True)) == []
    assert own_opening(opening_tokenizer(True, eos=True)) == [BOS]
    assert opened_ids([BOS, 7], [BOS]) == [BOS, 7]
    assert opened_ids([7], [BOS, 9]) == [BOS, 9, 7]


def test_a_prompt_that_is_too_long_loses_its_beginning_but_not_its_bos():
    assert shortened_ids([BOS, 10, 11, 12], [BOS], 3) == [BOS, 11, 12]
    assert shortened_ids([BOS, 10, 11, 12], [BOS], 4) == [BOS, 10, 11, 12]
    assert shortened_ids([10, 11, 12], [BOS], 2) == [11, 12]
    assert shortened_ids([BOS, 10, 11], [BOS], 1) == [11]
    lm = harness_model(opening_tokenizer(True))
    rows, mask = lm.tok_batch_encode(["red cat sees the dog", "red"], left_truncate_len=4)
    assert (rows[0].tolist()[0], rows.shape, mask.sum(1).tolist()) == (BOS, (2, 4), [4, 2])


def test_an_option_that_cannot_act_is_the_users_error():
    tokenizer = opening_tokenizer(False)
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="--bos: the tokenizer has no bos_token"):
        harness_model(tokenizer, bos=True)
    assert not harness_model(tokenizer).begins_with_bos
    printing = opening_tokenizer(True, template=PRINTS)
    with pytest.raises(UserError, match="--no-bos: the chat template itself begins with '<s>'"):
        harness_model(printing, chat=True, bos=False)
