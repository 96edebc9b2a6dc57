"""The user's mistakes at the command line: status 2, one clear message, nothing written."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsdr.core import files
from fedsdr.report import html
from support import tiny_recipe
from support.command_line import assert_told, invoke, snapshot

Tables = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cli")
    tiny_recipe.write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        patch.delenv("FEDSDR_UNSET", raising=False)
        yield folder


@pytest.fixture
def tables(home: Path, tmp_path: Path) -> Tables:
    """The tables of a recipe that would run, with files of its own to spoil."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (home / "model").iterdir():
        (model / file.name).hardlink_to(file)
    return tiny_recipe.recipe_tables(model, tiny_recipe.write_data_files(tmp_path / "data"))


def assert_refused(folder: Path, *args: str | Path, parts: list[str]) -> None:
    before = snapshot(folder)
    code, said = invoke(*args, "--out", folder / "out")
    assert_told(code, said, parts)
    assert not (folder / "out").exists()
    assert snapshot(folder) == before


def write(folder: Path, content: Tables | bytes) -> Path:
    path = folder / "recipe.toml"
    path.write_bytes(content if isinstance(content, bytes) else tomli_w.dumps(content).encode())
    return path


def test_the_recipe_that_is_spoilt_below_is_fine(tables, tmp_path):
    code, said = invoke("run", write(tmp_path, tables), "--out", tmp_path / "out")
    assert (code, "error" in said) == (0, False)


# Recipes


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["cannot read the recipe", "recipe.toml", "No such file"]),
        (b"[model", ["cannot read the recipe", "Expected ']'"]),
        (b'seed = 1\n[model]\npath = "\xff"', ["cannot read the recipe", "utf-8"]),
        (b"", ["recipe.toml: model: Field required"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_recipe_files(tmp_path, command, content, parts):
    path = tmp_path / "recipe.toml" if content is None else write(tmp_path, content)
    assert_refused(tmp_path, command, path, parts=parts)


@pytest.mark.parametrize(
    ("section", "key", "value", "parts"),
    [
        ("local", "lr", 0.1, ["local.lr: unknown key", "known keys: ", "rectify_lr", "smooth_lr"]),
        ("locals", "x", 1, ["locals: unknown key", "known keys: ", "federation", "local"]),
        ("", "sed", 1, ["sed: unknown key", "known keys: seed"]),
        ("lora", "rank", 0, ["lora.rank = 0", "greater than 0"]),
        ("lora", "rank", 2.5, ["lora.rank = 2.5", "integer"]),
        ("lora", "alpha", -1.0, ["lora.alpha = -1.0", "greater than 0"]),
        ("lora", "targets", ["q", "wq"], ["lora.targets names 'q', 'wq'", "'q_proj'"]),
        ("local", "rectify_lr", 0.0, ["local.rectify_lr = 0.0", "greater than 0"]),
        ("local", "rectify_lr", float("nan"), ["local.rectify_lr = nan"]),
        ("local", "rectify_lr", float("inf"), ["local.rectify_lr = inf"]),
        ("local", "smooth_lr", -1.0, ["local.smooth_lr = -1.0", "greater than 0"]),
        ("federation", "algorithm", "fedsgd", ["'fedsgd' is not known", "choose from fedavg, "]),
        ("federation", "robust", "medain", ["'medain' is not known", "median, trimmed_mean"]),
        ("federation", "lora_aggregation", "fedit", ["is not known", "factors, ffa, rolora"]),
        ("options", "fedprox", {"mu": -1}, ["options.fedprox.mu = -1", "greater than"]),
        ("options", "fedprox", {"nu": 1}, ["options.fedprox.nu", "options: mu"]),
        ("options", "fedprix", {}, ["options.fedprix is not known", "fedprox"]),
        ("lora", "ranks", {"anna": 1}, ["lora.ranks needs", "flexlora or flora"]),
        ("lora", "ranks", {"anna": 99}, ["ranks.anna = 99 is more than rank"]),
        ("federation", "targets", "both", ["federation.targets = 'both'", "'distilled'"]),
        ("federation", "pooled", True, ["pooled = true needs targets"]),
        ("distill", "checks", ["nice"], ["distill.checks has ['nice']", "choose from empty, "]),
        ("distill", "prompt", "rewrite it", ["prompt must contain {instruction}"]),
        ("", "baselines", ["fedsgd"], ["baselines names 'fedsgd'", "join some of base, fedsd"]),
        ("", "baselines", ["fedsdr"], ["would run 'fedsdr' twice", "remove it"]),
        ("model", "device", "gpu", ["model.device = 'gpu'", "use auto"]),
        ("model", "device", "meta", ["model.device = 'meta' holds shapes", "use auto"]),
        ("model", "device", "mps", ["model.device = 'mps'", "use auto"]),
        ("model", "dtype", "int8", ["model.dtype = 'int8'", "'bfloat16'"]),
        ("model", "template", "chatml", ["model.template = 'chatml'", "alpaca", "plain"]),
        ("model", "path", "./gone", ["/gone' is not a folder", "Hugging Face model folder"]),
        ("model", "path", "$FEDSDR_UNSET/m", ["variable FEDSDR_UNSET", "not set"]),
        ("model", "path", "~no_such_person/m", ["'~no_such_person/m' is not a path"]),
        ("model", "path", "lab", ['"lab" brings its own data', "remove data.sources"]),
        ("model", "max_length", 2, ["no record fits into 2 tokens", "raise model.max_length"]),
        ("data", "sources", [], ["no data: add [[data.sources]]"]),
        ("data", "held_out", 1.0, ["data.held_out = 1.0", "less than 1"]),
        ("data", "split", {"clients": 9}, ["data.split deals", "without a client", "remove it"]),
    ],
)  # fmt: skip
def test_values_of_a_recipe(tables, tmp_path, section, key, value, parts):
    if section:
        tables.setdefault(section, {})[key] = value
    else:
        tables[key] = value
    assert_refused(tmp_path, "run", write(tmp_path, tables), parts=parts)


# Data


def spoil(content: bytes, suffix: str = ".jsonl", **options: Any) -> Callable[[Path, Tables], None]:
    """Puts `content` in place of the second client's file."""

    def change(folder: Path, tables: Tables) -> None:
        path = folder / "data" / f"ben{suffix}"
        (folder / "data" / "ben.jsonl").unlink()
        path.write_bytes(content)
        tables["data"]["sources"][1] |= {"path": str(path), **options}

    return change


def gone(folder: Path, tables: Tables) -> None:
    (folder / "data" / "ben.jsonl").unlink()


def source(**options: Any) -> Callable[[Path, Tables], None]:
    return lambda folder, tables: tables["data"]["sources"][1].update(options)


def pooled(split: Tables) -> Callable[[Path, Tables], None]:
    def change(folder: Path, tables: Tables) -> None:
        for each in tables["data"]["sources"]:
            del each["client"]
        tables["data"]["split"] = split

    return change


FINE = b'{"prompt": "a", "response": "b"}\n'


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (gone, ["ben.jsonl does not exist", "give the path"]),
        (spoil(b""), ["ben.jsonl is empty", "remove the source"]),
        (spoil(b"\n \n"), ["ben.jsonl is empty"]),
        (spoil(FINE + b'{"prompt": "a"}\n'), ["ben.jsonl:2: no response", "missing", '"skip"']),
        (spoil(FINE + b'\n{"prompt": "a", "response": " "}'), ["ben.jsonl:3: no response", "skip"]),
        (spoil(FINE + b'{"prompt": "", "response": "b"}'), ["ben.jsonl:2: no instruction"]),
        (spoil(FINE + b'{"prompt": '), ["ben.jsonl:2: not valid JSON", "mend the line"]),
        (spoil(b'{"q": "a", "r": "b"}'), ["ben.jsonl: no known layout", "'q', 'r'", "fields ="]),
        (spoil(FINE + "ä".encode("latin-1")), ["ben.jsonl:2: not utf-8", 'encoding = "latin-1"']),
        (spoil(b"a,b\n1,2\n3\n", ".csv"), ["ben.csv:3: too few cells"]),
        (spoil(b"x", ".txt"), ["cannot tell the format from '.txt'", "add format"]),
        (spoil(b'{"prompt": "a", "response": ""}', empty="skip"), ["no record is left"]),
        (source(encoding="utf9"), ["encoding = 'utf9'", "utf-8"]),
        (source(fields={"response": "answer"}), ["fields.response = 'answer'", "'prompt'"]),
        (source(fields={"answers": "x"}), ["data.sources.1.fields.answers", "'answer'"]),
        (source(path="$FEDSDR_UNSET/a.jsonl"), ["variable FEDSDR_UNSET", "not set"]),
        (source(client="../up"), ["client = '../up' is no name of a client"]),
        (source(client="ANNA"), ["'anna' and 'ANNA'", "choose another client name"]),
        (source(limit=0), ["data.sources.1.limit = 0"]),
        (pooled({"clients": 99}), ["'client-27' has no training records", "lower split.clients"]),
        (pooled({"by": "column"}), ["anna.jsonl:1 has no category", "fields.category"]),
        (pooled({"by": "dirichlet", "clients": 20}), ["lower split.clients"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["run", "check"])
def test_data(tables, tmp_path, command, change, parts):
    change(tmp_path, tables)
    path = write(tmp_path, tables)
    if command == "check":
        assert_told(*invoke("check", path), parts)
    else:
        assert_refused(tmp_path, "run", path, parts=parts)


# Model folders

NO_TENSORS = b"\x08" + bytes(7) + b"{}      "  # a safetensors file with nothing in it


@pytest.mark.parametrize(
    ("without", "parts"),
    [
        ("config.json", ["has no config.json", "not a model folder"]),
        ("token*", ["has no tokenizer", "tokenizer.save_pretrained"]),
        ("*.safetensors", ["holds no weights", "model.safetensors"]),
    ],
)
def test_model_folders_that_lack_a_file(tables, tmp_path, without, parts):
    for file in (tmp_path / "model").glob(without):
        file.unlink()
    path = write(tmp_path, tables)
    assert_refused(tmp_path, "run", path, parts=[str(tmp_path / "model"), *parts])
    assert_told(*invoke("check", path), parts)


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("config.json", b"{", ["not a valid JSON file"]),
        ("config.json", b"{}", ["model_type"]),
        ("tokenizer.json", b"{", ["cannot load a tokenizer"]),
        ("model.safetensors", b"", ["model.safetensors is not a whole", "fetch or copy it again"]),
        ("model.safetensors", NO_TENSORS, ["model.safetensors holds no tensors"]),
    ],
)
def test_model_folders_with_a_broken_file(tables, tmp_path, file, content, parts):
    (tmp_path / "model" / file).unlink()
    (tmp_path / "model" / file).write_bytes(content)
    path = write(tmp_path, tables)
    assert_refused(tmp_path, "run", path, parts=parts)
    assert_told(*invoke("check", path), parts)


def test_weights_that_lack_a_tensor(tables, tmp_path):
    """Seen where they are loaded: transformers gives many tensors other names."""
    tensors, metadata = files.read_tensors(tmp_path / "model" / "model.safetensors")
    del tensors["lm_head.weight"]
    files.write_tensors(tmp_path / "model" / "model.safetensors", tensors, metadata)
    parts = ["lack 1 of the model's tensors", "lm_head.weight"]
    assert_refused(tmp_path, "run", write(tmp_path, tables), parts=parts)


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"{{ oops", "the chat template fails"), (b"\xff\xfe", "cannot read model.template")],
)
def test_templates_that_are_broken(tables, tmp_path, content, part):
    (tmp_path / "own.jinja").write_bytes(content)
    tables["model"]["template"] = "./own.jinja"
    assert_refused(tmp_path, "run", write(tmp_path, tables), parts=[part])


# Options of the command line


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("seed", ["--set 'seed'", "expected a.b=value"]),
        ("=1", ["--set '=1'"]),
        ("local.=1", ["--set 'local.=1'"]),
        ("local.lr=1", ["local.lr: unknown key", "rectify_lr"]),
        ("nothing.at.all=1", ["nothing: unknown key", "known keys"]),
        ("seed.x=1", ["'seed' is not a section"]),
        ("seed=one", ["seed = 'one'", "integer"]),
        ("lora.rank=[", ["lora.rank = '['"]),
    ],
)
def test_set(tables, tmp_path, option, parts):
    tables["seed"] = 0
    path = write(tmp_path, tables)
    assert_refused(tmp_path, "run", path, "--set", option, parts=parts)
    assert_told(*invoke("check", path, "--set", option), parts)


@pytest.mark.parametrize(
    ("seeds", "parts"),
    [
        ("a", ["--seeds 'a'", "like 0,1,2"]),
        ("", ["--seeds ''"]),
        ("1,", ["--seeds '1,'"]),
        ("1;2", ["--seeds '1;2'"]),
        ("1.5", ["--seeds '1.5'"]),
        ("0,1,0", ["--seeds '0,1,0'", "twice"]),
        ("1,+1", ["--seeds '1,+1'", "twice"]),
    ],
)
def test_seeds(tables, tmp_path, seeds, parts):
    assert_refused(tmp_path, "compare", write(tmp_path, tables), "--seeds", seeds, parts=parts)


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("data", "is not empty and nothing is written over: give another --out"),
        ("recipe.toml", "is a file and no folder: give another --out"),
        ("recipe.toml/out", "give another --out"),
        ("x" * 256, "give another --out"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_out_folders(tables, tmp_path, out, part, options):
    path = write(tmp_path, tables)
    before = snapshot(tmp_path)
    code, said = invoke("run", path, "--out", tmp_path / out, *options)
    assert_told(code, said, [str(tmp_path / out), part])
    assert snapshot(tmp_path) == before


def test_a_cache_that_cannot_be_written(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(write(tmp_path, tables)))
    code, said = invoke("run", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert_told(code, said, ["cannot write the rewrite cache", "set FEDSDR_CACHE"])


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tables, tmp_path, file_limit
):
    tables["federation"] |= {"targets": "raw", "rounds": 1}
    tables["lora"]["rank"] = 32
    out = ("--out", tmp_path / "out")
    with file_limit(9000):
        code, said = invoke("run", write(tmp_path, tables), *out)
    place = str(tmp_path / "out" / "checkpoint.safetensors")
    remedy = "file too large: raise the limit of a file's size (ulimit -f), and go on with --resume"
    assert_told(code, said, [f"cannot write {place}: {remedy}"])
    assert not [*(tmp_path / "out").rglob(".*")]
    assert invoke("run", tmp_path / "recipe.toml", *out, "--resume")[0] == 0


def test_a_report_of_no_run(tmp_path):
    parts = ["has no summary.json and no recipe.toml", "folder of a run"]
    assert_told(*invoke("report", tmp_path), parts)


def test_a_report_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(html, "load_run", lambda folder: None)
    monkeypatch.setattr(html, "render_report", lambda *_: "<html>")
    monkeypatch.setattr(os, "write", full)
    told = ["cannot write", "report.html: no space left on device: make room, and give the same"]
    assert_told(*invoke("report", tmp_path), told)


# Training that diverges: what was done before stays, and the message says where it happened


@pytest.mark.parametrize(
    ("local", "lora", "parts"),
    [
        ({"rectify_lr": 9.0, "smooth_lr": 9.0}, {"alpha": 1e38}, ["the gradient's norm became"]),
        # Which of the two is no number first depends on the processor's arithmetic.
        ({"weight_decay": 1e20}, {}, [" became nan", "round 1", "learning rate 0.02"]),
        (
            {"weight_decay": 1e38, "rectify_lr": 9.0, "rectify_steps": 1, "smooth_steps": 1},
            {},
            ["the adapter became NaN or infinite", "'anna', round 1, stage", "learning rate 9.0"],
        ),
    ],
)
def test_training_that_diverges(tables, tmp_path, local, lora, parts):
    tables["local"] |= local
    tables["lora"] |= lora
    path = write(tmp_path, tables)
    for options in ([], ["--resume"]):
        code, said = invoke("run", path, "--out", tmp_path / "out", *options)
        assert_told(code, said, [*parts, "lower the learning rate (local.rectify_lr"])
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert not (tmp_path / "out" / "global").exists()


# The real command


def command(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedsdr", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["ben.jsonl does not exist"]),
        (["--set", "lora.rank=0"], ["lora.rank = 0"]),
    ],
)
def test_the_command_itself(tables, tmp_path, options, parts):
    gone(tmp_path, tables)
    done = command("run", write(tmp_path, tables), "--out", tmp_path / "out", *options)
    assert_told(done.returncode, done.stderr, parts)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["run"], "Missing argument"),
        (["run", "recipe.toml"], "Missing option"),
        (["run", "recipe.toml", "--out", "x", "--fast"], "No such option"),
        (["run", "recipe.toml", "--out", "x", "--flops", "1"], "add --dry-run, or remove it"),
        (["walk"], "No such command"),
    ],
)
def test_usage(args, part):
    code, said = invoke(*args)
    assert code == 2
    assert part in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_standard_output_that_takes_nothing_is_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fedsdr", "algorithms"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write standard output: no space left")
    assert done.stderr.count("\n") == 1
