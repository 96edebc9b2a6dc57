"""Every causal architecture of transformers is trained, run and exported right, or refused.

The default suite tries one of each mechanism; `make models-table` tries all and writes the table.
"""

from io import StringIO

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.federation.loaded import slow_ways
from fedsdr.model import trials
from fedsdr.model.base import load_base
from fedsdr.model.trials import check_causal, passes_trial, rows_at_once
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.architectures import DOCUMENT, NAMES, conform, table_in, tiny_model

ONE_OF_EACH = {
    "gpt2": "weights stored as (in, out)",
    "opt": "dropout within the blocks",
    "stablelm": "raises where texts are laid end to end",
    "bloom": "no positions but ALiBi",
    "mistral": "a sliding window",
    "mamba": "a cache of another kind, and layers that PEFT refuses",
    "recurrent_gemma": "recurrence that padding on the left disturbs",
    "bart": "layers that no text passes through",
    "ctrl": "layers whose last names are those of blocks too",
    "mixtral": "experts in single tensors",
    "deepseek_v3": "shared experts of names that PEFT takes for the experts'",
    "llama4_text": "a router that is a linear layer by type and gives a pair",
    "falcon": "a linear layer of its own kind",
    "reformer": "no gradient",
    "xlnet": "looks ahead",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated",  # PEFT asks under the older name
)
SHORT = "{# short #}" + tiny_recipe.TEMPLATE
TABLE = table_in(DOCUMENT.read_text(encoding="utf-8"))


def test_the_document_has_a_row_for_every_architecture():
    assert tuple(TABLE) == NAMES, "transformers has others now: make models-table"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_architecture_is_right_and_as_the_document_says(name):
    assert str(conform(name)) == TABLE[name]


def setting(folder, name, **sections):
    """A recipe on an architecture's tiny model, with two templates."""
    recipe = tiny_recipe.write_recipe(folder, lora={"targets": "all-linear"}, **sections)
    (folder / "model" / "model.safetensors").unlink()
    tiny_model(name).save_pretrained(folder / "model")
    words = tiny_recipe.word_tokenizer(tiny_recipe.WORDS)
    words.chat_template = {"default": tiny_recipe.TEMPLATE, "short": SHORT}
    words.save_pretrained(folder / "model")
    return recipe


def test_what_of_a_mixture_is_not_adapted_is_said_wherever_it_is_used(tmp_path):
    path = setting(tmp_path, "mixtral", model={"template": "name:short"})
    line = "mixture of experts: attention is adapted, experts are not (78% of the weights)"
    result = CliRunner().invoke(app, ["check", str(path)])
    assert line in result.output
    assert "chat template: the tokenizer's 'short'" in result.output
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert line in said
    assert "template the tokenizer's 'short'" in said
    assert line in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    export_model(
        open_finished(tmp_path / "run"), ExportChoice(), tmp_path / "made", silent_reporter()
    )
    assert line[1:] in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    templates = AutoTokenizer.from_pretrained(tmp_path / "made").chat_template
    assert templates == {
        "default": SHORT,
        "short": SHORT,
        "original": tiny_recipe.TEMPLATE,
    }


def test_an_architecture_without_a_cache_runs_the_whole_method_and_says_so(tmp_path):
    """Mamba: layers without a gradient, drifts held by SCAFFOLD, rewrites without a cache."""
    path = setting(
        tmp_path, "mamba", model={"gradient_checkpointing": True},
        federation={"algorithm": "scaffold", "rounds": 1},
    )  # fmt: skip
    said = StringIO()
    run_recipe(load_recipe(path), tmp_path / "run", Reporter(Console(file=said, width=200)))
    assert "texts are written without a cache" in said.getvalue()


def test_a_model_that_looks_ahead_is_refused_and_the_remedy_works(tmp_path):
    path = setting(tmp_path, "bert")
    config = tmp_path / "model" / "config.json"
    right = config.read_text(encoding="utf-8")
    config.write_text(right.replace('"is_decoder": true', '"is_decoder": false'), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokens after it.*set is_decoder = true"):
        run_recipe(load_recipe(path), tmp_path / "run", silent_reporter())
    assert not (tmp_path / "run").exists()
    config.write_text(right, encoding="utf-8")
    load_base(str(tmp_path / "model"), device="cpu")


def test_a_trial_that_raises_says_no_and_is_made_once():
    calls = []

    def trial(model):
        calls.append(model)
        raise RuntimeError("not this one")

    model = tiny_model("llama")
    assert not passes_trial(model, trial)
    assert not passes_trial(model, trial)
    assert len(calls) == 1


def test_a_lack_of_memory_is_no_answer_to_a_trial():
    answers = iter([torch.OutOfMemoryError("put in by the test"), None])

    def trial(model):
        if error := next(answers):
            raise error
        return True

    model = tiny_model("llama")
    with pytest.raises(torch.OutOfMemoryError):
        passes_trial(model, trial)
    assert passes_trial(model, trial)


def test_a_model_that_computes_nan_is_not_said_to_look_ahead():
    model = tiny_model("llama")
    model.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(UserError, match=r"logits are NaN or infinite in float32: set model.dtype"):
        check_causal(model, "m")


def test_texts_whose_padding_leaks_are_trained_on_one_at_a_time(monkeypatch):
    model = tiny_model("llama")
    assert rows_at_once(model, 4) == 4
    other = tiny_model("llama")
    monkeypatch.setattr(trials, "same_logits", lambda *_: False)
    assert (rows_at_once(other, 4), rows_at_once(other, 1)) == (1, 1)
    assert slow_ways(other)[0].startswith("texts are trained on one at a time")
