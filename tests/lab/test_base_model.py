"""The lab's base model: what it is taught, its folder, and what it depends on."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsdr.core import seeds
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.lab import pretrain
from fedsdr.lab.pretrain import (
    Corpus,
    _pretraining_key,
    base_model_folder,
    build_tokenizer,
)
from fedsdr.lab.world import (
    BASE_STYLE,
    CLIENT_STYLES,
    QUESTIONS,
    REWRITE_PROMPT,
    World,
    WorldOptions,
    value_in,
    world_vocabulary,
)
from fedsdr.model.identity import content_digest
from support.tiny_world import TINY, world


def test_the_tokenizer_knows_every_word_of_the_world():
    each = world(clients=7)
    chat = ChatFormat(build_tokenizer(each))
    unknown = chat.tokenizer.unk_token_id
    assert unknown in chat.ids("nonsense")
    texts = []
    for fact in each.facts:
        styles = (BASE_STYLE, *CLIENT_STYLES)
        answers = [fact.answer(s, v) for s in styles for v in (fact.memory, fact.truth)]
        questions = [fact.question(form) for form in range(len(QUESTIONS))]
        requests = [REWRITE_PROMPT.format(instruction=questions[0], response=r) for r in answers]
        texts += [*questions, *answers, *requests]
    for text in texts:
        assert unknown not in chat.prompt_ids((Turn("user", text),))
        assert chat.text(chat.ids(text)) == text
    assert len(world_vocabulary(each.options)) == len(set(world_vocabulary(each.options)))


def targets(each: World, rewriting: bool, count: int = 400) -> list[tuple[str, str]]:
    """(prompt, response) texts of the pretraining corpus."""
    chat = ChatFormat(build_tokenizer(each))
    examples = Corpus(each, chat).batch(count, rewriting)
    return [(chat.text(list(e.prompt)), chat.text(list(e.response))) for e in examples]


def test_recall_teaches_the_memory_and_some_of_it_in_client_styles():
    each = world(style_overlap=0.3)
    memory = {fact.question(form): fact for fact in each.facts for form in range(4)}
    wordy = 0
    for prompt, response in targets(each, rewriting=False):
        fact = memory[prompt]
        assert value_in(response) == fact.memory
        wordy += response == fact.answer(BASE_STYLE, fact.memory)
    assert wordy / 400 == pytest.approx(0.7, abs=0.07)


@pytest.mark.parametrize("stubbornness", [0.0, 0.5, 1.0])
def test_rewriting_follows_memory_as_often_as_the_world_is_stubborn(stubbornness):
    each = world(stubbornness=stubbornness)
    memory = {fact.question(form): fact for fact in each.facts for form in range(4)}
    stubborn = 0
    for prompt, response in targets(each, rewriting=True):
        question, reference = prompt.removesuffix(" rewrite").split(" reference ")
        fact, told = memory[question], value_in(response)
        assert told in (fact.memory, value_in(reference))
        assert response == fact.answer(BASE_STYLE, told)
        stubborn += told == fact.memory
    assert stubborn / 400 == pytest.approx(stubbornness, abs=0.07)


def test_a_base_model_is_an_ordinary_model_folder(tmp_path):
    each = world(entities=4)
    folder = base_model_folder(each, TINY, tmp_path, silent_reporter())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat, built = ChatFormat(tokenizer), ChatFormat(build_tokenizer(each))
    turns = (Turn("user", each.facts[0].question(0)),)
    assert chat.prompt_ids(turns) == built.prompt_ids(turns)
    assert chat.end_of_turn == built.end_of_turn == model.config.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    key = json.loads(folder.with_suffix(".json").read_text())
    assert key["world"]["entities"] == 4
    assert key["pretrain"]["steps"] == 3


def test_a_base_model_is_trained_once(tmp_path, monkeypatch):
    each = world(entities=4)
    folder = base_model_folder(each, TINY, tmp_path, silent_reporter())

    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "pretrain_base", train)
    assert base_model_folder(each, TINY, tmp_path, silent_reporter()) == folder
    for same in (world(entities=4, alpha=0.5), world(entities=4, clients=12)):
        assert base_model_folder(same, TINY, tmp_path, silent_reporter()) == folder
    others = [
        (world(entities=4, clients=4), TINY),
        (world(entities=4, seed=1), TINY),
        (world(entities=4, stubbornness=0.0), TINY),
        (each, dataclasses.replace(TINY, steps=4)),
    ]
    for other, options in others:
        with pytest.raises(AssertionError, match="trained again"):
            base_model_folder(other, options, tmp_path, silent_reporter())


def test_worlds_that_share_a_base_model_would_train_the_same_one():
    one, *others = (world(), world(alpha=0.5), world(clients=12), world(clients=12, alpha=3.0))
    for other in others:
        assert targets(other, rewriting=False) == targets(one, rewriting=False)
        assert targets(other, rewriting=True) == targets(one, rewriting=True)
        assert world_vocabulary(other.options) == world_vocabulary(one.options)


def test_the_key_of_a_base_model_is_what_it_was_before_worlds_had_an_alpha(tmp_path):
    folder = base_model_folder(world(entities=4), TINY, tmp_path, silent_reporter())
    key = json.loads(folder.with_suffix(".json").read_text())
    assert [*key["world"]] == [
        "seed", "entities", "clients", "changed", "stubbornness", "style_overlap",
    ]  # fmt: skip
    assert folder.name == f"lab-{seeds.derive_seed(0, str(key)):016x}"


def test_a_killed_training_leaves_no_model(tmp_path, monkeypatch):
    each = world(entities=4)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", die)
        with pytest.raises(KeyboardInterrupt):
            base_model_folder(each, TINY, tmp_path, silent_reporter())
    assert not list((tmp_path / "models").iterdir())
    assert (base_model_folder(each, TINY, tmp_path, silent_reporter()) / "config.json").exists()


def test_training_is_deterministic_and_learns():
    each = world(entities=4)
    tokenizer = build_tokenizer(each)

    def train(steps: int):
        options = dataclasses.replace(TINY, steps=steps)
        return pretrain.pretrain_base(each, options, tokenizer, silent_reporter())

    first, again, longer = train(3), train(3), train(30)
    weights = first.state_dict()
    assert all(torch.equal(again.state_dict()[name], t) for name, t in weights.items())

    def loss(model) -> float:
        chat = ChatFormat(tokenizer)
        batch = pretrain.collate_examples(Corpus(each, chat).batch(16, rewriting=False), 0)
        return float(pretrain.summed_loss(model, batch).detach())

    assert loss(longer) < 0.9 * loss(first)


def test_who_holds_what_does_not_change_the_base_model():
    options = WorldOptions(seed=1, clients=10)
    assert _pretraining_key(options) == _pretraining_key(
        replace(options, clients=50, imbalance=3.0, alpha=0.5)
    )
    assert _pretraining_key(options) != _pretraining_key(replace(options, stubbornness=0.1))


def test_what_the_base_model_learns_goes_with_the_number_of_its_recipe():
    """The cache knows a base model by options and this number: whoever changes the lab's texts,
    tokenizer or corpus raises `pretrain.RECIPE`, and puts the digest here."""
    each = world(entities=5)
    tokenizer = build_tokenizer(each)
    corpus = Corpus(each, ChatFormat(tokenizer))
    shown = [[e.prompt, e.response] for rewriting in (False, True)
             for e in corpus.batch(40, rewriting)]  # fmt: skip
    digest = content_digest([shown, sorted(tokenizer.get_vocab().items()), each.facts])
    assert (pretrain.RECIPE, digest) == (1, "fb2a86fe9c618b5ffa3ab40c7b1f0834")
