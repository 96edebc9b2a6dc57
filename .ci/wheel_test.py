"""A wheel in an environment of its own runs every command of README: `make wheel-test`.

`dist.py` builds the wheel. The new environment sees the dependencies of the environment that runs
this script, but not its fedsdr; with --full pip installs them there anew, as constraints.txt pins
them, and what takes minutes is run too. README's own recipe is run, cut short, with a tiny model,
in an empty folder, offline. Status 1 at the first command that fails, prints a traceback or a
warning, or draws bars in a pipe.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dist import DistributionError, build_distributions

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PROGRAM = ".venv/bin/fedsdr"
JUNK = re.compile(r"Traceback|[A-Za-z]*Warning\b|\x1b|\r")
SHORT = """
[local]
batch_size = 2
rectify_steps = 1
smooth_steps = 1

[distill]
min_tokens = 4

[evaluate]
every = 0
"""
# Commands of README, and others after them, in lanes that run side by side. Words after "+" are
# not README's: they keep a command short, and nobody is asked. "<" gives it lines to read.
BEFORE = (
    (
        f"{PROGRAM} run my.toml --dry-run + --flops 1e11",
        f"{PROGRAM} deploy init my.toml --out federation --host fed.example.org",
        f"{PROGRAM} status federation/server",
    ),
    (
        f"{PROGRAM} check my.toml --out runs/mine",
        f"{PROGRAM} run my.toml --out runs/mine",
        f"{PROGRAM} run my.toml --out runs/mine --resume",
    ),
)
AFTER = (
    (
        f"{PROGRAM} eval runs/mine --tasks mmlu,bbh,drop --data ./eval + --limit 1",
        f"{PROGRAM} judge runs/mine --a global --b fedavg --questions mtbench/ --judge MODEL"
        " + --yes --answer-tokens 4",
        f"{PROGRAM} report runs/mine",
        f"{PROGRAM} chat runs/mine --client hospital + --max-tokens 4 < red cat",
        f"{PROGRAM} diagnose my.toml --distilled 32",
        f"{PROGRAM} distill my.toml --pilot 32",
        f"{PROGRAM} version",
    ),
    (
        f"{PROGRAM} compare my.toml --seeds 0,1,2 --out runs/mine3"
        " + --set baselines=[] --set model.max_length=64",
        f"{PROGRAM} export runs/mine --out exports/mine",
        f"{PROGRAM} export runs/mine --out exports/merged --merge",
        f"{PROGRAM} diagnose my.toml --out runs/look",
        f"{PROGRAM} distill my.toml --out runs/rewrites --report",
        f"{PROGRAM} algorithms",
        f"{PROGRAM} demo --help",
    ),
)
LONG = (
    (
        f"{PROGRAM} deploy simulate my.toml --out simulated",
        f"{PROGRAM} demo --seeds 0",
        f"{PROGRAM} demo --model ./my-model --out runs/demo-mine",
    ),
)


class FailedError(Exception):
    """A command or a check that did not do what it must; its text is printed."""


class Home(NamedTuple):
    """An environment and the folder in which its commands are run. seconds: of each command."""

    environment: Path
    folder: Path
    variables: dict[str, str]
    seconds: dict[str, float]


def main(full: bool) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedsdr-wheel-") as name:
        place = Path(name)
        try:
            wheel = build_distributions(place / "dist").wheel
            environment = install(wheel, place / "environment", full)
            check_readme(BEFORE + AFTER + LONG)
            with judge() as variables:
                home = prepared(environment, place / "work", variables)
                for lanes in (BEFORE, AFTER, LONG if full else ()):
                    side_by_side(home, lanes)
        except (DistributionError, FailedError) as error:
            print(f"wheel-test: failed: {error}", file=sys.stderr)
            return 1
    count, seconds = len(home.seconds), time.monotonic() - began
    print(f"wheel-test: {count} commands of {wheel.name} in {seconds:.0f} s")
    if not full:
        print("wheel-test: left out without --full: " + "; ".join(words for words in LONG[0]))
    return 0


# --- The environment


def install(wheel: Path, environment: Path, full: bool) -> Path:
    venv.create(environment)
    python = environment / "bin" / "python"
    common = ("--python", str(python), "install", "--quiet")
    if full:
        constraints = ("--constraint", str(ROOT / "constraints.txt"))
        pip(*common, *constraints, f"{wheel}[all]")
    else:
        pip(*common, "--no-deps", str(wheel))
        [site] = environment.glob("lib/python*/site-packages")
        # A path that is added by a .pth file has its own .pth files ignored: no editable installs.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = subprocess.run(
        [python, "-I", "-c", "import fedsdr; print(fedsdr.__file__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not found.stdout.startswith(str(environment)):
        raise FailedError(f"fedsdr is not imported from the wheel: {found.stdout}{found.stderr}")
    return environment


def pip(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise FailedError(f"pip {shlex.join(words)}\n{done.stdout}{done.stderr}")


# --- README's recipe and what it names, in miniature


def prepared(environment: Path, folder: Path, variables: dict[str, str]) -> Home:
    """The folder in which README's commands are given."""
    folder.mkdir()
    (folder / "my.toml").write_text(readme_recipe() + SHORT)
    write_model(folder / "my-model")
    write_data(folder)
    write_benchmarks(folder / "eval")
    questions = [{"question_id": i, "category": "x", "turns": ["red cat"]} for i in range(2)]
    write_rows(folder / "mtbench" / "question.jsonl", questions)
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    path = os.pathsep.join([str(environment / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
    homes = {"HOME": str(folder), "PATH": path, "OMP_NUM_THREADS": "1"}
    return Home(environment, folder, {**kept, **homes, **offline, **variables}, {})


def readme_recipe() -> str:
    """The first recipe of README, with one round."""
    found = re.search(r"```toml\n(.*?)```", readme(), re.DOTALL)
    assert found
    text, count = re.subn(r"^rounds = \d+$", "rounds = 1", found.group(1), flags=re.MULTILINE)
    assert count == 1
    return text


def write_model(folder: Path) -> None:
    """A random Llama with a token a word, whose context holds the default rewriting request."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from support import tiny_recipe

    logging.disable_progress_bar()

    tokenizer = tiny_recipe.word_tokenizer(tiny_recipe.WORDS)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, **ends,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Records for each of two clients, of which 32 are left to train on when some are held out."""
    texts = ["red cat", "blue dog", "green bird", "one two", "two three", "cat sees dog"] * 7
    rows = [{"instruction": f"{text} {i}", "output": text} for i, text in enumerate(texts)]
    write_rows(folder / "hospital.jsonl", rows)
    lines = ["content,label", *(f"{text} \u00e9 {i},{text}" for i, text in enumerate(texts))]
    (folder / "bank.csv").write_text("\n".join(lines) + "\n", encoding="latin-1")


def write_benchmarks(folder: Path) -> None:
    """MMLU, BBH and DROP, in the layout of docs/benchmarks.md."""
    for part in ("dev", "test"):
        path = folder / "mmlu" / part / f"cats_{part}.csv"
        path.parent.mkdir(parents=True)
        lines = [f"red cat {i},red,blue,green,one,{i % 4}" for i in range(6)]
        path.write_text("question,choice0,choice1,choice2,choice3,answer\n" + "\n".join(lines))
    examples = [{"input": f"red cat {i}", "target": "(A)"} for i in range(6)]
    (folder / "bbh").mkdir()
    (folder / "bbh" / "cats.json").write_text(json.dumps({"canary": "", "examples": examples}))
    rows = [
        {"context": f"Passage: cat {i}.\nQuestion: which?\nAnswer:", "ref_text": f"cat {i}"}
        for i in range(6)
    ]
    write_rows(folder / "drop_v0_dev.jsonl", rows)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def judge() -> Iterator[dict[str, str]]:
    """A judge on the loopback, as the variables that lead to it."""
    from support.chat_server import serving

    with serving(lambda messages: "Both are good. [[C]]") as server:
        yield {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"}


# --- The commands


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def check_readme(lanes: Sequence[Sequence[str]]) -> None:
    """Every command that README gives is in a lane."""
    run = {re.split(r" [+<] ", line)[0] for lane in lanes for line in lane}
    given = re.findall(rf"^{re.escape(PROGRAM)} .*", readme(), re.MULTILINE)
    given += re.findall(rf"`({re.escape(PROGRAM)} [^`]+)`", readme())
    missing = {line.split("#")[0].strip() for line in given} - run
    if missing or not given:
        raise FailedError(f"README's commands that are not run here: {sorted(missing)}")


def side_by_side(home: Home, lanes: Sequence[Sequence[str]]) -> None:
    def follow(lane: Sequence[str]) -> None:
        for line in lane:
            command(home, line)

    with ThreadPoolExecutor(max(1, len(lanes))) as pool:
        list(pool.map(follow, lanes))


def command(home: Home, line: str) -> None:
    """Run one command, and look at all that it prints."""
    words, _, lines = line.replace(" + ", " ").partition(" < ")
    program = home.environment / "bin" / "fedsdr"
    began = time.monotonic()
    done = subprocess.run(
        [program, *shlex.split(words)[1:]], cwd=home.folder, env=home.variables, text=True,
        input=lines, capture_output=True, check=False, timeout=3600,
    )  # fmt: skip
    home.seconds[line] = time.monotonic() - began
    printed = done.stdout + done.stderr
    # What a random model answers is empty on some processors: `chat` says so on stderr.
    if done.returncode != 0 or not printed.strip() or JUNK.search(printed):
        raise FailedError(f"{words}\nstatus {done.returncode}\n{printed}")
    print(f"{home.seconds[line]:6.1f} s  {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main("--full" in sys.argv[1:]))
