"""Exports: what plain transformers and PEFT load in another process is the model of the run."""

import errno
import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.layout import RESULT_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Turn
from fedsdr.export.adapter import exported_adapter
from fedsdr.export.card import Artefact, write_card
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.recipe.load import parse_recipe
from fedsdr.workflows.finished import Models, open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_models, tiny_recipe, toy_clients

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

FAMILIES = tuple(tiny_models.FAMILIES)
NAMES = {"global": "global", "personal": "client:ben", "exact": "fedsdr+fedex"}
QUESTIONS = ("name the sum of one", "a b c d")
LENGTH = 12
TOLERANCE = 2e-5  # of logits of size 10: float32, summed in another order

# Settings of a base model that change what `generate` answers, greedily or not. The ids are those
# of words that the models here write.
ODD_SETTINGS = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 11,
    "suppress_tokens": list(range(10, 30)),
    "begin_suppress_tokens": list(range(30, 50)),
    "bad_words_ids": [[8], [9]],
    "eos_token_id": [3, *range(8, 14)],
    "forced_eos_token_id": 7,
}

# Everything that a stranger's process does; it knows folders, not fedsdr.
STRANGER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
torch.set_num_threads(1)
questions, length, *folders = json.loads(sys.argv[1])
found = {}
for folder in folders:
    config = Path(folder, "adapter_config.json")
    if config.exists():
        base = json.loads(config.read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    found[folder] = []
    for question in questions:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].tolist()
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                  max_new_tokens=length)
        new = made[0, ids.shape[1]:].tolist()
        new = new[:-1] if new[-1] in model.generation_config.eos_token_id else new
        answer = tokenizer.decode(new, skip_special_tokens=True)
        found[folder].append([logits, answer.strip()])
assert not [name for name in sys.modules if name.startswith("fedsdr")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run of each family, and of the two that make their ranks unequal or noisy."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        for family in FAMILIES:
            content = tables(folder, family)
            run_recipe(parse_recipe(content), folder / family, silent_reporter())
        yield folder


def tables(folder: Path, family: str):
    model = tiny_models.save_family(family, folder / f"base-{family}")
    files.write_json(model / "generation_config.json", ODD_SETTINGS)
    content = tiny_recipe.recipe_tables(model, tiny_recipe.write_data_files(folder / "data"))
    content["lora"] = {"rank": 2, "alpha": 6.0, "targets": list(tiny_models.NAMED[family])}
    content["federation"]["rounds"] = 2
    content["local"] |= {"rectify_lr": 0.3, "smooth_lr": 0.3, "smoothing_state": "keep"}
    content["baselines"] = ["fedsdr+fedex"] if family in ("llama", "gpt2") else []
    return content


def cases(family: str) -> list[tuple[str, str, bool]]:
    """(kind, model, merged) of all exports of a family's run."""
    kinds = ["global", "personal", *(["exact"] if family in ("llama", "gpt2") else [])]
    return [(kind, NAMES[kind], merged) for kind in kinds for merged in (False, True)]


@pytest.fixture(scope="module")
def exports(home):
    """(family, kind, merged) -> folder."""
    places = {}
    for family in FAMILIES:
        finished = open_finished(home / family)
        for kind, name, merged in cases(family):
            place = home / "out" / f"{family}-{kind}-{'merged' if merged else 'adapter'}"
            export_model(finished, ExportChoice(name, merged), place, silent_reporter())
            places[family, kind, merged] = place
    return places


@pytest.fixture(scope="module")
def strange(exports):
    """What a process without fedsdr gets from every export."""
    job = json.dumps([QUESTIONS, LENGTH, *map(str, exports.values())])
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, job], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_process_finds_the_model_of_the_run(home, exports, strange, family):
    opened = Models(open_finished(home / family), silent_reporter())
    chat, model = opened.base.chat, opened.base.model
    prompts = [chat.prompt_ids((Turn("user", question),)) for question in QUESTIONS]
    plain = [last_logits(model, prompt) for prompt in prompts]
    for kind, name, merged in cases(family):
        opened.use(name)
        jobs = [Job(prompt, LENGTH) for prompt in prompts]
        answers = [chat.text(ids) for ids in generate_batch(model, jobs, chat.ends)]
        assert chat.ends == set(ODD_SETTINGS["eos_token_id"])
        found = strange[str(exports[family, kind, merged])]
        for prompt, answer, without, (logits, text) in zip(
            prompts, answers, plain, found, strict=True
        ):
            here = last_logits(model, prompt)
            assert (here - torch.tensor(logits)).abs().max() < TOLERANCE, (kind, merged)
            assert text == answer, (kind, merged)
            assert (here - without).abs().max() > 0.1  # the adapter is not a no-op


@torch.no_grad()
def last_logits(model, prompt):
    return model(input_ids=torch.tensor([prompt])).logits[0, -1]


def test_ranks_add_up_and_the_scale_stays(home, exports):
    for kind, rank in (("global", 2), ("personal", 4)):
        config = read_json(exports["llama", kind, False] / "adapter_config.json")
        assert (config["r"], config["lora_alpha"]) == (rank, 3.0 * rank)
    exact, _ = exported_adapter(open_finished(home / "llama"), "fedsdr+fedex")
    assert max(t.shape[0] for key, t in exact.items() if "lora_A" in key) > 2


def test_a_merged_model_is_rounded_once(home, exports, tmp_path):
    export_model(
        open_finished(home / "llama"),
        ExportChoice(merged=True, dtype="bfloat16"),
        tmp_path / "b",
        silent_reporter(),
    )
    wide = load_file(exports["llama", "global", True] / "model.safetensors")
    narrow = load_file(tmp_path / "b" / "model.safetensors")
    assert wide.keys() == narrow.keys()
    for key, tensor in wide.items():
        assert torch.equal(tensor.to(torch.bfloat16), narrow[key]), key
    assert read_json(tmp_path / "b" / "config.json")["dtype"] == "bfloat16"


def test_a_quantised_base_exports_adapters_alone(home, tmp_path):
    done = open_finished(home / "llama")
    quantised = done.recipe.model.model_copy(update={"quantisation": "nf4"})
    done = replace(done, recipe=done.recipe.model_copy(update={"model": quantised}))
    with pytest.raises(UserError, match=r"quantised.*without --merge"):
        export_model(done, ExportChoice(merged=True), tmp_path / "merged", silent_reporter())
    assert not (tmp_path / "merged").exists()
    export_model(done, ExportChoice(), tmp_path / "adapter", silent_reporter())


def test_a_merged_model_has_the_dtype_that_its_base_was_loaded_in(home, tmp_path):
    assert open_finished(home / "llama").recipe.model.dtype == "auto"
    export_model(
        open_finished(home / "llama"), ExportChoice(merged=True), tmp_path / "m", silent_reporter()
    )
    assert read_json(tmp_path / "m" / "config.json")["dtype"] == "float32"


# Privacy


def secrets(home: Path) -> dict[str, bytes]:
    """What a client has told nobody, as bytes that a leak would show."""
    clients = home / "llama" / "clients"
    texts = {
        row["text"]
        for c in toy_clients.CLIENTS
        for row in read_json_lines(clients / c / "rewrites.jsonl")
    }
    raw = [
        row for c in toy_clients.CLIENTS for row in read_json_lines(home / "data" / f"{c}.jsonl")
    ]
    texts |= {row[field] for row in raw for field in ("prompt", "response")}
    found = {text: text.encode() for text in texts if len(text) > 8}
    for client in toy_clients.CLIENTS:
        for key, tensor in load_file(
            clients / client / "private" / "adapter_model.safetensors"
        ).items():
            found[f"S {client} {key}"] = tensor.contiguous().numpy().tobytes()[:64]
        found[client] = client.encode()
    return found


def test_a_global_export_holds_nothing_of_a_client(home, exports):
    hidden = secrets(home)
    assert len(hidden) > 30
    for merged in (False, True):
        for path in exports["llama", "global", merged].rglob("*"):
            content = path.read_bytes()
            assert not [name for name, secret in hidden.items() if secret in content], path


def test_a_personal_export_holds_s_and_is_its_owners_alone(home, exports):
    folder = exports["llama", "personal", False]
    s = load_file(home / "llama" / "clients" / "ben" / "private" / "adapter_model.safetensors")
    both = load_file(folder / "adapter_model.safetensors")
    for key, tensor in s.items():
        half = both[key][2:] if "lora_A" in key else both[key][:, 2:]
        assert torch.equal(half, tensor), key
    for merged in (False, True):
        place = exports["llama", "personal", merged]
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert {stat.S_IMODE(p.stat().st_mode) for p in place.rglob("*")} == {0o600}
        card = (place / "README.md").read_text()
        assert "Personal model" in card
        assert "ben" not in card


# The card


def front_matter(card: str):
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_says_what_hugging_face_reads(home, exports, tmp_path):
    folder = exports["gpt2", "global", False]
    head = front_matter((folder / "README.md").read_text())
    assert head["base_model"] == str(home / "base-gpt2")
    assert (head["library_name"], head["pipeline_tag"]) == ("peft", "text-generation")
    assert "license" not in head
    merged = front_matter((exports["gpt2", "global", True] / "README.md").read_text())
    assert merged["library_name"] == "transformers"
    export_model(
        open_finished(home / "gpt2"),
        ExportChoice(base="openai/gpt2"),
        tmp_path / "named",
        silent_reporter(),
    )
    config = read_json(tmp_path / "named" / "adapter_config.json")
    card = (tmp_path / "named" / "README.md").read_text()
    assert config["base_model_name_or_path"] == front_matter(card)["base_model"] == "openai/gpt2"
    assert str(home) not in card


def test_the_card_says_the_date_that_the_template_prints(home, tmp_path):
    run = open_finished(home / "gpt2")
    artefact = Artefact("global", False, "base", "float32", (2, 2), 2.0)
    for date, says in (("", False), ("2025-02-03", True)):
        write_card(tmp_path, run, replace(artefact, date=date), client_names=False)
        card = (tmp_path / "README.md").read_text()
        assert ("learnt with 2025-02-03 in that place" in card) == says
        assert "prints the date" not in card or says


def test_the_card_states_counts_and_scores_and_names_only_when_asked(home, exports, tmp_path):
    card = (exports["llama", "global", False] / "README.md").read_text()
    assert "| 2 | 7 | 2 |" in card
    loss = read_json(home / "llama" / RESULT_FILE)["loss"]
    assert f"| Held-out loss | {loss:.3f} | nats per token |" in card
    assert "No differential privacy" in card
    export_model(
        open_finished(home / "llama"),
        ExportChoice(client_names=True),
        tmp_path / "named",
        silent_reporter(),
    )
    named = (tmp_path / "named" / "README.md").read_text()
    assert "| ben | 7 | 2 |" in named
    assert "Held-out loss: ben" in named


def test_a_private_run_states_epsilon_and_no_counts(home, tmp_path):
    content = tables(home, "qwen")
    content["privacy"] = {"mode": "central", "noise_multiplier": 2.0}
    content["federation"] = {"rounds": 1, "targets": "raw"}
    run_recipe(parse_recipe(content), tmp_path / "run", silent_reporter())
    export_model(
        open_finished(tmp_path / "run"), ExportChoice(), tmp_path / "out", silent_reporter()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    epsilon = read_json(tmp_path / "run" / RESULT_FILE)["epsilon"]
    assert f"epsilon {epsilon:.4g}" in card
    assert "3 clients" in card
    assert "| 2 | 7 | 2 |" not in card


def test_the_code_in_the_card_runs(home, exports):
    for merged in (False, True):
        folder = exports["qwen", "global", merged]
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        code = code.replace('folder = "."', f"folder = {str(folder)!r}").replace('"..."', '"a b"')
        space: dict[str, object] = {}
        exec(code, space)
        assert space["ids"].shape[0] == 1


# Data files gone, and bad input


def test_an_export_needs_no_data_files(home, tmp_path):
    content = tables(home, "qwen")
    sources = tiny_recipe.write_data_files(tmp_path / "data")
    content["data"]["sources"] = [{"path": str(p), "client": p.stem} for p in sources]
    content["federation"]["rounds"] = 1
    run_recipe(parse_recipe(content), tmp_path / "run", silent_reporter())
    for path in sources:
        path.unlink()
    result = invoke(tmp_path / "run", "--out", tmp_path / "out", "--model", "client:anna")
    assert result.exit_code == 0, result.stderr
    assert "that client's alone" in result.stderr
    assert result.stdout.strip() == str(tmp_path / "out")


def invoke(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "nobody"), "no model 'nobody': choose from base, "),
        (("--model", "base"), "no adapter to export: choose from "),
        (("--model", "client:zoe"), "client:anna"),
        (("--dtype", "int3"), "--dtype 'int3': choose from float32, bfloat16, float16"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(home, tmp_path, words, said):
    result = invoke(home / "llama", "--out", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(home, tmp_path):
    (tmp_path / "out").mkdir()
    result = invoke(home / "llama", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing is written over" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    result = invoke(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is not a run folder" in result.stderr


def test_a_failure_leaves_nothing_behind(home, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("fedsdr.export.write.write_card", fails)
    with pytest.raises(UserError, match=r"cannot write .*/out: no space left"):
        export_model(
            open_finished(home / "llama"), ExportChoice(), tmp_path / "out", silent_reporter()
        )
    assert list(tmp_path.iterdir()) == []
