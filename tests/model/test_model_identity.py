"""Whatever a model's answers depend on is in its identity, and what keeps or shares results goes
by it: the same name and path are not enough anywhere. (Evaluations: test_eval_command.py.)"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import REPORT_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.data.partition import data_fingerprint
from fedsdr.deploy.client.begun import BEGUN, changed_parts
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.server.admission import Admission, ServerConnection
from fedsdr.deploy.server.serve import known_model, known_run
from fedsdr.distillation import rewrite
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.judge import answers
from fedsdr.judge.questions import JudgeQuestion
from fedsdr.model.base import load_base
from fedsdr.model.identity import Identity, differing_parts, identity_text
from fedsdr.model.peft_format import WEIGHTS
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows import run
from fedsdr.workflows.distill import open_rewriter
from fedsdr.workflows.finished import Models, open_finished
from fedsdr.workflows.prepare import prepare_run, rewrite_cache
from support import tiny_recipe, toy_clients
from support.command_line import snapshot
from support.message_lines import Loopback
from support.model_changes import CHANGES, vocabulary, weight

QUESTION = JudgeQuestion("1", "", ("the red cat",), ("",))


@dataclass(frozen=True)
class Home:
    """A finished run whose page is still to be written, as a kill leaves it."""

    folder: Path
    recipe: Recipe

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def load(self) -> Any:
        return prepare_run(self.recipe).load(silent_reporter())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    recipe = load_recipe(
        tiny_recipe.write_recipe(folder, federation={"rounds": 1}, evaluate={"every": 0})
    )
    home = Home(folder, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        run.run_recipe(recipe, home.out, silent_reporter())
        (home.out / REPORT_FILE).unlink()
        answers.answers_of(open_finished(home.out), ["global"], [QUESTION], 4, 4, silent_reporter())
        shutil.copytree(folder, folder.parent / "kept")
        yield home


@pytest.fixture
def home(first: Home) -> Home:
    """The same folder as `first` left it, whatever a test did to it: recipes hold its path."""
    shutil.rmtree(first.folder)
    shutil.copytree(first.folder.parent / "kept", first.folder)
    return first


# --- What is part of an identity


@pytest.mark.parametrize(("change", "parts"), CHANGES.items())
def test_every_change_is_one_of_the_identity(home, change, parts):
    before = load_base(str(home.model), device="cpu").identity
    change(home.model)
    after = load_base(str(home.model), device="cpu").identity
    assert differing_parts(before, after) == differing_parts(after, before) == parts


def test_where_a_model_lies_and_what_wrote_it_is_no_part_of_it(home, tmp_path):
    moved = shutil.copytree(home.model, tmp_path / "elsewhere")
    config = files.read_json(moved / "config.json")
    files.write_json(moved / "config.json", {**config, "transformers_version": "4.0.0"})
    before, after = (load_base(str(p), device="cpu") for p in (home.model, moved))
    after.chat.tokenizer(["red", "red cat"], padding=True, truncation=True, max_length=2)
    assert identity_text(before.identity) == identity_text(after.identity)


def test_a_dtype_and_a_template_file_are_parts_of_it(home, tmp_path):
    plain = load_base(str(home.model), device="cpu").identity
    half = load_base(str(home.model), dtype="bfloat16", device="cpu").identity
    assert differing_parts(plain, half) == ["weights", "dtype"]
    path = tmp_path / "t.jinja"
    path.write_text(tiny_recipe.TEMPLATE)
    assert load_base(str(home.model), str(path), device="cpu").identity == plain
    path.write_text(tiny_recipe.TEMPLATE.replace("'<", "'< "))
    other = load_base(str(home.model), str(path), device="cpu").identity
    assert differing_parts(plain, other) == ["chat template"]


def test_one_byte_of_an_adapter_makes_another_model(home):
    opened = open_finished(home.out)
    base = opened.base_identity()
    assert opened.identity("base", base) == base
    names = ["global", "client:anna", "client:ben"]
    found = [opened.identity(name, base) for name in names]
    assert len({identity_text(each) for each in found}) == len(names)
    one_byte(home.out / "global" / WEIGHTS)
    again = [opened.identity(name, base) for name in names]
    assert [differing_parts(a, b) for a, b in zip(found, again, strict=True)] == [["adapters"]] * 3


def one_byte(path: Path) -> None:
    tensors = load_file(path)
    key = min(tensors)
    tensors[key].view(torch.uint8)[0, 0] ^= 1
    save_file(tensors, path)


# --- Who goes by it


def rewrites(home: Home) -> bool:
    """Whether the cache of rewrites is used: nothing is generated."""
    generated: list[int] = []

    def generate(model: Any, jobs: Any, *rest: Any) -> Any:
        generated.append(len(jobs))
        return [[] for _ in jobs]

    with pytest.MonkeyPatch.context() as patch, rewrite_cache() as cache:
        patch.setitem(rewrite.GENERATORS, "fedsdr", generate)
        open_rewriter(home.load(), home.recipe).rewrite(cache, silent_reporter())
    return not generated


def resumes(home: Home) -> bool:
    """Whether a run goes on; where it does not, nothing is written."""
    before = snapshot(home.out)
    words = f"the base model has changed since {home.out} was begun, in its"
    if works(words, run.run_recipe, home.recipe, home.out, silent_reporter(), resume=True):
        return True
    assert snapshot(home.out) == before
    return False


def agrees(home: Home) -> bool:
    """Whether a client is taken into a run that was begun on what the run's folder says."""
    loaded, methods = home.load().of("anna"), resolve_methods(home.recipe)
    keys, folder = ClientKeys(UNSIGNED, UNSIGNED), home.folder / "a"
    side = ClientSide(loaded, methods, "anna", folder, keys, silent_reporter())
    roster = dict.fromkeys(toy_clients.CLIENTS, UNSIGNED)
    run_name, line = known_run(home.folder), Loopback({1: side})
    connection = ServerConnection(line, roster, UNSIGNED, pause=0.0)
    door = Admission(connection, home.recipe, run_name, silent_reporter())
    door.model = known_model(home.out)
    door.connect(0, 0.05)
    return "anna" in door.places


def goes_on(home: Home) -> bool:
    """Whether a client takes up a method that it began before it was restarted."""
    begun = {**open_finished(home.out).base_identity(), "data": read_data(home)}
    files.write_json(home.folder / BEGUN, begun)
    return not changed_parts(home.folder, home.load().of("anna"))


def read_data(home: Home) -> str:
    """The identity of anna's data."""
    return data_fingerprint(
        [each for each in prepare_run(home.recipe).clients if each.name == "anna"]
    )


def opens(home: Home) -> bool:
    """Whether models of a finished run are made of it: to talk to, to evaluate, to judge."""
    words = f"the base model has changed since {home.out} was run, in its"
    return works(words, Models, open_finished(home.out), silent_reporter())


def works(words: str, action: Callable[..., object], *args: Any, **options: Any) -> bool:
    """Whether an action is not refused; a refusal must have these words."""
    try:
        action(*args, **options)
    except UserError as error:
        refusal = str(error)
    else:
        return True
    assert words in refusal
    return False


STORES: Mapping[str, Callable[[Home], bool]] = {
    each.__name__: each for each in (rewrites, resumes, agrees, goes_on, opens)
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("change", [None, *CHANGES])
def test_a_changed_model_is_noticed_everywhere(home, change, store):
    if change is not None:
        change(home.model)
    assert STORES[store](home) is (change is None)


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        (lambda out: None, True),
        (lambda out: one_byte(out / "global" / WEIGHTS), False),
        (lambda out: note(out, tokenizer="another"), False),
        (lambda out: in_half_precision(out / "recipe.toml"), False),
    ],
)
def test_answers_are_reused_for_the_very_same_model_alone(home, change, reused):
    change(home.out)
    maker = "asks for the base model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "Models", lambda *_: pytest.fail(maker))
        with nullcontext() if reused else pytest.raises(pytest.fail.Exception, match=maker):
            answers.answers_of(
                open_finished(home.out), ["global"], [QUESTION], 4, 4, silent_reporter()
            )


def in_half_precision(path: Path) -> None:
    text = path.read_text()
    assert 'dtype = "auto"' in text
    path.write_text(text.replace('dtype = "auto"', 'dtype = "bfloat16"'))


def note(out: Path, **parts: str) -> None:
    """Let a run be one of another base model."""
    path = out / "environment.json"
    found = files.read_json(path)
    files.write_json(path, found | {"identity": {**found["identity"], **parts}})


def test_another_benchmark_is_noticed_by_a_resume(home):
    loaded = home.load()

    class Asked:
        def __init__(self, digest: str) -> None:
            self.digest = digest

        def identities(self) -> Identity:
            return {"crass": self.digest}

    out = home.folder / "new"
    loaded.benchmarks = Asked("one")
    run.record_start(out, loaded, 0, silent_reporter())
    run.record_start(out, loaded, 0, silent_reporter())
    loaded.benchmarks = None  # the recipe says so
    run.record_start(out, loaded, 0, silent_reporter())
    loaded.benchmarks = Asked("two")
    with pytest.raises(UserError, match="benchmark 'crass' has changed since"):
        run.record_start(out, loaded, 0, silent_reporter())


def test_a_benchmark_added_at_a_resume_is_noted_beside_the_first(home):
    loaded, out = home.load(), home.folder / "added"

    class Asked:
        def __init__(self, **digests: str) -> None:
            self.digests = digests

        def identities(self) -> Identity:
            return self.digests

    for digests in ({}, {"crass": "one"}, {"gsm8k": "one"}):
        loaded.benchmarks = Asked(**digests)
        run.record_start(out, loaded, 0, silent_reporter())
    assert files.read_json(out / "environment.json")["benchmarks"] == {
        "crass": "one", "gsm8k": "one",
    }  # fmt: skip
    for task in ("crass", "gsm8k"):
        loaded.benchmarks = Asked(**{task: "two"})
        with pytest.raises(UserError, match=f"benchmark '{task}' has changed since"):
            run.record_start(out, loaded, 0, silent_reporter())


def test_a_run_of_an_earlier_version_goes_on_and_notes_its_model(home):
    path = home.out / "environment.json"
    found = files.read_json(path)
    files.write_json(path, {k: v for k, v in found.items() if k not in ("identity", "benchmarks")})
    assert resumes(home)
    assert files.read_json(path)["identity"] == found["identity"]


def test_a_federation_of_an_earlier_version_goes_on_with_the_same_weights(home):
    path = home.out / "environment.json"
    found = files.read_json(path)
    weights = found.pop("identity")["weights"]
    files.write_json(path, found | {"data": weights})
    assert agrees(home)
    weight(home.model)
    assert not agrees(home)


def test_another_dtype_is_said_where_a_finished_run_is_opened(home):
    said: list[str] = []
    reporter = silent_reporter()
    reporter.say = said.append  # type: ignore[method-assign]
    recipe = override_recipe(home.recipe, {"model.dtype": "bfloat16"})
    opened = open_finished(home.out)
    base = load_base(recipe.model.path, dtype=recipe.dtype, device="cpu")
    opened.check_base(base.identity, reporter)
    assert said == [f"the base model is bfloat16 here, and was float32 in {home.out}"]
    with pytest.raises(UserError, match="in its tokenizer:"):
        opened.check_base({**base.identity, "tokenizer": ""}, reporter)


@pytest.mark.parametrize("merged", [False, True])
def test_nothing_is_exported_for_another_base_model(home, merged, tmp_path):
    export_model(
        open_finished(home.out), ExportChoice(merged=merged), tmp_path / "one", silent_reporter()
    )
    card = (tmp_path / "one" / "README.md").read_text()
    for part in ("weights", "tokenizer", "chat template"):
        assert open_finished(home.out).base_identity()[part] in card
    vocabulary(home.model)
    with pytest.raises(UserError, match=r"the base model has changed since .*in its tokenizer"):
        export_model(
            open_finished(home.out),
            ExportChoice(merged=merged),
            tmp_path / "two",
            silent_reporter(),
        )
    assert not (tmp_path / "two").exists()
