"""Entailment: directions and thresholds by hand, scores against the model itself, bad models."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Candidate, Rewrite
from fedsdr.distillation.entailment import (
    TextPair,
    check_entailment,
    entailment_judge,
    load_entailment,
)
from fedsdr.distillation.verify import build_verifier
from fedsdr.recipe.sections.distill import Distill, Entailment
from support import tiny_recipe

LABELS = {0: "CONTRADICTION", 1: "neutral", 2: "Entailment"}
PAIRS = [
    TextPair("red green", "blue"),
    TextPair("red cat sees the dog near a bird", "cat sees dog"),
    TextPair("one", "two three one two"),
    TextPair("blue", "red green"),
]


def nli_folder(folder: Path, labels: dict[int, str] | None = None) -> Path:
    """A random BERT of two layers for pairs of up to 24 tokens."""
    tokenizer = tiny_recipe.word_tokenizer(tiny_recipe.WORDS)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=24, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5, num_labels=3, id2label=labels or LABELS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nli_folder(tmp_path_factory.mktemp("nli"))


def options(folder: Path | str = "", **changes: Any) -> Entailment:
    return Entailment(model=str(folder), **changes)


def candidate(raw: str, rewrite: str, instruction: str = "q") -> Candidate:
    return Candidate(Record((Turn("user", instruction),), raw), Rewrite(rewrite, finished=True))


# --- Scores


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_are_those_of_the_model_one_by_one(folder, batch_size):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for pair in PAIRS:
        with torch.no_grad():
            logits = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        expected.append(float(logits.softmax(0)[2]))
    assert len({round(p, 3) for p in expected}) == len(PAIRS)
    score = load_entailment(options(folder, batch_size=batch_size), "cpu")
    assert score(PAIRS) == pytest.approx(expected, abs=1e-5)
    assert score([]) == []


def test_the_class_is_found_by_its_name(folder):
    scores = [
        load_entailment(options(folder, label=name), "cpu")(PAIRS) for name in LABELS.values()
    ]
    assert [sum(p or 0 for p in each) for each in zip(*scores, strict=True)] == pytest.approx(
        [1.0] * 4
    )


@pytest.mark.parametrize(("room", "read"), [(512, True), (24, True), (5, False)])
def test_what_the_model_cannot_read_whole_has_no_score(folder, room, read):
    score = load_entailment(options(folder, max_length=room), "cpu")
    found = score([TextPair("red", "blue"), TextPair("red green blue", "one two three")])
    assert found[0] is not None
    assert (found[1] is not None) is read
    assert score([TextPair("red " * 20, "blue " * 5)]) == [None]  # beyond the model's 24 positions


# --- Verdicts


def rigged(asked: list[TextPair]) -> Any:
    """A model for which "all" entails everything, and nothing else entails anything."""

    def score(pairs: Sequence[TextPair]) -> list[float | None]:
        asked.extend(pairs)
        return [
            None if "long" in pair.premise else 0.9 if "all" in pair.premise else 0.1
            for pair in pairs
        ]

    return score


@pytest.mark.parametrize(
    ("direction", "raw", "rewrite", "reason"),
    [
        ("rewrite_entails_raw", "some", "all", ""),
        ("rewrite_entails_raw", "all", "some", "not_entailed"),
        ("raw_entails_rewrite", "all", "some", ""),
        ("raw_entails_rewrite", "some", "all", "not_entailed"),
        ("both", "all", "some", "not_entailed"),
        ("both", "some", "all", "not_entailed"),
        ("both", "all", "all", ""),
        ("both", "long", "all", "not_checked"),
        ("rewrite_entails_raw", "all", "long", "not_checked"),
    ],
)
def test_directions(direction, raw, rewrite, reason):
    judge = entailment_judge(options(direction=direction), rigged([]))
    (verdict,) = judge([candidate(raw, rewrite)])
    assert verdict.reason == reason
    asked = {"both": 2}.get(direction, 1) - (reason == "not_checked")
    assert len(verdict.measured) == asked


@pytest.mark.parametrize(("threshold", "passes"), [(0.9, True), (0.91, False), (0.0, True)])
def test_the_threshold(threshold, passes):
    judge = entailment_judge(options(threshold=threshold), rigged([]))
    (verdict,) = judge([candidate("some", "all")])
    assert (verdict.reason == "") is passes
    assert verdict.measured == {"rewrite_entails_raw": 0.9}


@pytest.mark.parametrize(
    ("question", "texts"), [(True, TextPair("q\nall", "q\nsome")), (False, TextPair("all", "some"))]
)
def test_the_question_stands_before_both(question, texts):
    asked: list[TextPair] = []
    entailment_judge(options(question=question), rigged(asked))([candidate("some", "all")])
    assert asked == [texts]


def rig(folder: Path, target: Path) -> Path:
    """The same model with a head that says entailment whatever it reads, at probability 0.8."""
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.1, 0.1, 0.8]).log())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


@pytest.mark.parametrize(("threshold", "reason"), [(0.79, ""), (0.81, "not_entailed")])
def test_a_model_of_known_verdict_in_the_gate(folder, tmp_path, threshold, reason):
    given = options(rig(folder, tmp_path), threshold=threshold)
    distill = Distill(checks=("empty", "entailment"), entailment=given)
    gate = build_verifier(distill, 0, "cpu").gate([])
    verdicts = gate([candidate("red", ""), candidate("red", "blue"), candidate("red", "a cat")])
    assert [v.reason for v in verdicts] == ["empty", reason, reason]
    assert verdicts[0].measured == {}
    assert verdicts[1].measured["rewrite_entails_raw"] == pytest.approx(0.8)


def test_only_a_gate_with_the_check_loads_the_model():
    assert (
        build_verifier(Distill(checks=("empty",), entailment=options("/gone")), 0, "cpu").score
        is None
    )


# --- Models that will not do


def test_without_a_model():
    with pytest.raises(UserError, match=r"needs distill\.entailment\.model"):
        check_entailment(options(), "cpu")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        check_entailment(options(tmp_path / "gone"), "cpu")
    with pytest.raises(UserError, match=r"cannot load the config of distill\.entailment\.model"):
        check_entailment(options(tmp_path), "cpu")


def test_a_model_that_is_no_classifier(tmp_path):
    tiny_recipe.write_model(tmp_path)
    with pytest.raises(UserError, match="is not a sequence classifier but LlamaForCausalLM"):
        check_entailment(options(tmp_path), "cpu")


def test_classes_without_names(tmp_path):
    nli_folder(tmp_path, {i: f"LABEL_{i}" for i in range(3)})
    with pytest.raises(UserError, match=r"LABEL_0, LABEL_1, LABEL_2; name .*entailment\.label"):
        check_entailment(options(tmp_path), "cpu")
    check_entailment(options(tmp_path, label="label_2"), "cpu")
    assert all(
        math.isfinite(p) for p in load_entailment(options(tmp_path, label="LABEL_2"), "cpu")(PAIRS)
    )


def test_a_tokenizer_that_cannot_pad(folder, tmp_path):
    target = nli_folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(target)
    with pytest.raises(UserError, match="no pad_token"):
        check_entailment(options(target), "cpu")


def test_weights_without_a_head(tmp_path):
    target = nli_folder(tmp_path)
    model = BertForSequenceClassification.from_pretrained(target)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    model.save_pretrained(target, state_dict=state)
    with pytest.raises(UserError, match=r"lack 'classifier\.bias'"):
        load_entailment(options(target), "cpu")


def test_the_device_is_checked(folder):
    with pytest.raises(UserError, match=r"device = 'gpu'"):
        check_entailment(options(folder, device="gpu"), "cpu")
