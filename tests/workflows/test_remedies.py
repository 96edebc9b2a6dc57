"""What `check` refuses, and that the remedy which it names is one: a line of a table for each."""

import json
import shutil
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.prepare import PreparedRun, prepare_run
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
Tables = dict[str, Any]
Change = Callable[[Path, Tables], None]

STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<' + m.role + '> ' + m.content + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe.write_model(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def adapter(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter of the original model, saved with a tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(original)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():  # PEFT reads a name that transformers is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(base, config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(original).save_pretrained(folder)
    return folder


@pytest.fixture
def tables(original: Path, tmp_path: Path) -> Tables:
    """The tables of a recipe that would run, with files of its own to spoil."""
    shutil.copytree(original, tmp_path / "model")
    return tiny_recipe.recipe_tables(
        tmp_path / "model", tiny_recipe.write_data_files(tmp_path / "data")
    )


def checked(folder: Path, tables: Tables) -> PreparedRun:
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return prepare_run(load_recipe(path))


def path(value: str) -> Change:
    return lambda folder, tables: tables["model"].update(path=str(folder / value))


def key(section: str, name: str, value: Any) -> Change:
    return lambda folder, tables: tables[section].update({name: value})


def save(folder: Path, **options: Any) -> None:
    """The original's weights again, in shards where a size is given."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, **options)


def shards(spoil: Callable[[Path], None]) -> Change:
    """The model in shards; `spoil` gets the second of them."""

    def change(folder: Path, tables: Tables) -> None:
        save(folder / "model", max_shard_size="10KB")
        shutil.copytree(folder / "model", folder / "whole")
        spoil(sorted((folder / "model").glob("*.safetensors"))[1])

    return change


def whole(folder: Path, tables: Tables) -> None:
    shutil.rmtree(folder / "model")
    shutil.copytree(folder / "whole", folder / "model")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def no_index(file: Path) -> None:
    (file.parent / "model.safetensors.index.json").unlink()


def swapped(file: Path) -> None:
    other = next(f for f in sorted(file.parent.glob("*.safetensors")) if f != file)
    shutil.copy(other, file)


def pickled(folder: Path, tables: Tables) -> None:
    file = folder / "model" / "model.safetensors"
    torch.save(load_file(file), folder / "model" / "pytorch_model.bin")
    file.unlink()


def unpickled(folder: Path, tables: Tables) -> None:
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(folder / "model")


def gguf(name: str) -> Change:
    """A GGUF file in the place of the weights, or of the whole folder."""

    def change(folder: Path, tables: Tables) -> None:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        (folder / "model").rename(folder / "first")
        if file.parent == folder / "model":
            shutil.copytree(folder / "first", folder / "model")
            (folder / "model" / "model.safetensors").unlink()
        file.write_bytes(b"GGUF\3\0\0\0")

    return change


def one_token_more(word: str) -> Change:
    def change(folder: Path, tables: Tables) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        tokenizer.add_tokens([word])
        tokenizer.save_pretrained(folder / "model")

    return change


def resized(folder: Path, tables: Tables) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder / "model")))
    model.save_pretrained(folder / "model")


def resized_without_configuration(folder: Path, tables: Tables) -> None:
    """Weights of a resized table under the configuration of before."""
    config = (folder / "model" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.resize_token_embeddings(64)
    model.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text(config)


def configured(folder: Path, tables: Tables) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 64}))


def first_tokenizer(folder: Path, tables: Tables) -> None:
    tiny_recipe.word_tokenizer(tiny_recipe.WORDS).save_pretrained(folder / "model")


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


GOOD = talk(("user", "red"), ("assistant", "green"))
BAD = talk(("user", "red"), ("user", "blue"), ("assistant", "green"))


def strict(folder: Path, tables: Tables) -> None:
    """Two conversations of ben's and one of cleo's are none for the template."""
    (folder / "strict.jinja").write_text(STRICT)
    tables["model"]["template"] = "./strict.jinja"
    tiny_recipe.write_rows(folder / "data" / "ben.jsonl", [GOOD, BAD, GOOD, BAD])
    tiny_recipe.write_rows(folder / "data" / "cleo.jsonl", [BAD, GOOD])


def rows_removed(folder: Path, tables: Tables) -> None:
    for name in ("ben", "cleo"):
        tiny_recipe.write_rows(folder / "data" / f"{name}.jsonl", [GOOD, GOOD])


def typing(folder: Path, tables: Tables) -> None:
    """A template that adds what is no text: no error of Jinja's own."""
    (folder / "own.jinja").write_text("{{ messages[0].content + 1 }}")
    tables["model"]["template"] = "./own.jinja"


def nothing(folder: Path, tables: Tables) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "parts", "remedies"),
    [
        (shards(Path.unlink), ["lacks model-00002-of-", "copy the folder again"], [whole]),
        (shards(cut), ["model-00002-of-", "is not a whole safetensors file", "again"], [whole]),
        (shards(no_index), ["holds model-00001-of-", "no model.safetensors.index.json"], [whole]),
        (shards(swapped), ["model-00002-of-", "which model.safetensors.index.json says"], [whole]),
        (pickled, ["pytorch_model.bin, a pickle", "save_pretrained(NEW_FOLDER)"], [unpickled]),
        (gguf("model/model.gguf"), ["model.gguf, a GGUF file", "give the file"], [path("first")]),
        (gguf("model"), ["not a whole GGUF file", "copy it again"], [path("first")]),
        (key("model", "path", "w.gguf"), ["w.gguf' is not there", "existing"], [path("model")]),
        (resized_without_configuration, ["vocab_size = 23, and model.embed_tokens.weight in",
         "has 64 rows: set vocab_size = 64"], [configured]),
        (key("model", "path", "./gone"), ["is not a folder", "give a"], [path("model")]),
        (one_token_more("red green"), ["anna.jsonl:", "'red green' is number 23 of 24", "23 rows"],
         [resized, first_tokenizer]),
        (strict, ["ben.jsonl:2: the chat template refuses", "(Roles must alternate); 2 more rows "
                  "have the same problem (ben.jsonl:4, cleo.jsonl:1)", "mend or remove the row"],
         [rows_removed, key("model", "template", "plain"), key("data", "invalid", "skip")]),
        (typing, ["the chat template fails"], [key("model", "template", "auto")]),
        (key("lora", "targets", ["w1"]), ["'w1'", "or 'all-linear'"],
         [key("lora", "targets", "all-linear"), key("lora", "targets", ["q_proj"])]),
        (key("model", "max_length", 3), ["no record fits into 3 tokens", "raise model.max_length"],
         [key("model", "max_length", 64)]),
        (key("model", "device", "meta"), ["use auto"], [key("model", "device", "auto")]),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_remedy_remedies(tables, tmp_path, monkeypatch, spoil, parts, remedies):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    if spoil.__qualname__.startswith("one_token"):  # a record that has it
        tiny_recipe.write_rows(
            tmp_path / "data" / "anna.jsonl",
            [{"prompt": "a", "response": "b"}, {"prompt": "red green", "response": "b"}] * 2,
        )
    spoil(tmp_path, tables)
    with pytest.raises(UserError) as caught:
        checked(tmp_path, tables)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
    for remedy in remedies:
        state = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{remedy.__name__}"))
        again = json.loads(json.dumps(tables).replace(str(tmp_path), str(state)))
        remedy(state, again)
        assert checked(state, again).records.encoded
        shutil.rmtree(state)


# Adapters where a model should be


def test_an_adapter_next_to_weights(tables, tmp_path, adapter):
    """transformers would load it silently, and every stream would lie on another base."""
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    names = ("adapter_config.json", "adapter_model.safetensors")
    for name in names:
        shutil.copy(adapter / name, model / name)
    with pytest.raises(UserError, match=r"holds an adapter.*merge_and_unload.*or move") as caught:
        checked(tmp_path, tables)
    assert str(model) in str(caught.value)
    elsewhere.mkdir()
    for name in names:
        (model / name).rename(elsewhere / name)
    assert checked(tmp_path, tables).records.encoded


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_in_place_of_a_model(tables, tmp_path, original, adapter, with_config):
    mine = shutil.copytree(adapter, tmp_path / "mine")
    if with_config:
        shutil.copy(original / "config.json", mine)
    tables["model"]["path"] = str(mine)
    with pytest.raises(UserError, match="is a PEFT adapter, not a model") as caught:
        checked(tmp_path, tables)
    assert f"give {original}, or merge" in str(caught.value)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(original), adapter)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(tmp_path / "merged")
    for remedy in (original, tmp_path / "merged"):
        tables["model"]["path"] = str(remedy)
        assert checked(tmp_path, tables).records.encoded


# The folder of a run


def test_room_at_out(tables, tmp_path, monkeypatch):
    """Asked for by `check` and `run` alike, before anything is written."""
    needed = checked(tmp_path, tables).least_bytes()
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    usage = namedtuple("usage", "free")

    def said(command: str) -> str:
        result = CliRunner().invoke(app, [command, str(recipe), "--out", str(out)])
        assert not out.exists()
        assert result.exit_code == (2 if result.stderr else 0)
        return result.stderr

    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(needed - 1))
    assert "needs 0.0 MiB at least" in said("run")
    assert "make room, or give another --out" in said("check")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(needed))
    assert said("check") == ""


def test_a_run_writes_no_less_than_was_asked_for(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    setting = checked(tmp_path, tables)
    run_recipe(setting.recipe, tmp_path / "out", silent_reporter())
    tensors = sum(f.stat().st_size for f in (tmp_path / "out").rglob("*.safetensors"))
    assert 0 < setting.least_bytes() <= tensors < 2 * setting.least_bytes()


def test_check_asks_whether_out_can_be_written(tables, tmp_path):
    checked(tmp_path, tables)
    arguments = ["check", str(tmp_path / "recipe.toml"), "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "data")])
    assert result.exit_code == 2
    assert "nothing is written over" in result.stderr
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "new")]).exit_code == 0
    assert not (tmp_path / "new").exists()
