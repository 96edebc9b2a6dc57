"""Who may import whom, read from the source: the lines that keep the parts apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedsdr

ROOT = Path(fedsdr.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name(path: Path) -> str:
    """A file's path within the package: algorithms/fedavg.py."""
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> set[str]:
    """Every module that a file imports anywhere in it; for `from a import b` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def ours(*parts: str) -> set[str]:
    return {f"fedsdr.{part}" for part in parts}


OUTSIDE = {"transformers", "peft", "flwr", "datasets"}
TOP = ours(
    "cli",
    "run",
    "method_run",
    "summary",
    "folders",
    "setting",
    "methods",
    "evidence",
    "trained",
    "export",
    "diagnosis",
    "judge",
    "distillation",
    "benchmarking",
    "preparation",
)

# part of the package -> what it must not import
FORBIDDEN: dict[str, set[str]] = {
    "sections": OUTSIDE
    | TOP
    | {"torch"}
    | ours(
        "algorithms",
        "data",
        "diagnose",
        "distill",
        "engines",
        "evaluate",
        "lab",
        "model",
        "recipe",
        "report",
        "training",
    ),
    "algorithms": OUTSIDE
    | TOP
    | ours(
        "model",
        "data",
        "engines",
        "training",
        "distill",
        "evaluate",
        "lab",
        "report",
        "files",
        "diagnose",
    ),
    "data": TOP
    | ours(
        "model",
        "distill",
        "training",
        "engines",
        "algorithms",
        "evaluate",
        "lab",
        "report",
        "diagnose",
    ),
    "model": TOP
    | ours(
        "distill",
        "training",
        "engines",
        "algorithms",
        "evaluate",
        "lab",
        "report",
        "recipe",
        "diagnose",
    ),
    "distill": TOP
    | ours("training", "engines", "algorithms", "evaluate", "lab", "report", "diagnose"),
    "training": TOP | ours("distill", "engines", "evaluate", "lab", "report", "recipe", "diagnose"),
    "evaluate": TOP | ours("distill", "engines", "lab", "report", "recipe", "diagnose"),
    "diagnose": TOP | ours("engines", "algorithms", "lab", "report", "recipe"),
    "lab": TOP | ours("distill", "engines", "algorithms", "report", "diagnose"),
    "report": TOP
    | OUTSIDE
    | {"torch"}
    | ours(
        "model",
        "training",
        "engines",
        "algorithms",
        "distill",
        "lab",
        "data",
        "evaluate",
        "diagnose",
    ),
    "estimate": ours("cli", "run", "method_run", "summary", "folders", "setting", "evidence")
    | ours("trained", "engines", "evaluate", "lab", "report", "diagnose"),
    "engines": TOP | ours("lab", "report", "diagnose"),
    "export": ours("cli", "evidence", "run", "method_run", "summary"),
    "chat": ours("cli", "evidence", "run", "method_run", "summary", "export"),
    "tracking": (TOP - ours("tracking"))
    | ours("model", "training", "engines", "algorithms", "distill", "lab", "data", "report"),
    "judge": {"transformers", "peft", "flwr"}
    | ours(
        "cli",
        "run",
        "method_run",
        "summary",
        "setting",
        "methods",
        "evidence",
        "distill",
        "training",
        "engines",
        "algorithms",
        "lab",
        "report",
        "diagnose",
    ),
    "evidence": ours("cli"),
    "deploy": {"transformers", "peft", "datasets"}
    | ours("cli", "run", "evidence", "trained", "export", "judge", "chat", "benchmarking")
    | ours("lab", "report", "diagnose", "diagnosis"),
    "cli": set(),  # puts everything together
}
BASIC = ("adapters.py", "errors.py", "files.py", "metrics.py", "progress.py", "seeds.py")


def violations(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{name(path)} imports {module}"
        for path in paths
        for module in sorted(imports(TREES[path]))
        if within(module, forbidden)
    ]


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_import_only_what_they_may(part):
    paths = [path for path in FILES if name(path).startswith(part + "/")]
    assert len(paths) > 1
    assert violations(paths, FORBIDDEN[part]) == []


def test_every_part_is_listed():
    folders = {name(path).split("/")[0] for path in FILES if "/" in name(path)}
    assert folders == set(FORBIDDEN)


def test_the_basic_modules_stand_on_each_other_alone():
    parts = ours(*FORBIDDEN, "recipe") | TOP | OUTSIDE
    assert violations([ROOT / file for file in BASIC], parts) == []


def test_only_the_table_of_algorithms_reads_recipes():
    paths = [p for p in FILES if name(p).startswith("algorithms/") and p.name != "table.py"]
    assert violations(paths, ours("recipe")) == []


def test_nothing_imports_the_command_line():
    paths = [path for path in FILES if not name(path).startswith("cli/")]
    assert violations(paths, ours("cli")) == []


def test_no_module_imports_itself_in_a_circle():
    """Follow imports at the top of modules; those inside of functions cannot make a circle."""
    modules = {"fedsdr." + name(p).removesuffix(".py").replace("/", "."): p for p in FILES}
    edges = {
        module: {
            found
            for statement in TREES[path].body
            if isinstance(statement, ast.Import | ast.ImportFrom)
            for found in imports(statement) & modules.keys()
        }
        for module, path in modules.items()
    }
    while leaves := {module for module, targets in edges.items() if not targets}:
        edges = {m: targets - leaves for m, targets in edges.items() if m not in leaves}
    assert edges == {}


# --- The privacy line

UNWRAPPERS = ("adapters.py", "training/", "engines/", "method_run.py", "deploy/client.py")


def uses(tree: ast.AST, word: str) -> bool:
    """Whether a name, attribute or import is called `word`."""
    return any(
        (isinstance(node, ast.Name) and node.id == word)
        or (isinstance(node, ast.Attribute) and node.attr == word)
        or (isinstance(node, ast.alias) and word in (node.name.rpartition(".")[2], node.asname))
        for node in ast.walk(tree)
    )


def users(word: str) -> set[str]:
    return {name(path) for path, tree in TREES.items() if uses(tree, word)}


def test_private_adapters_are_unwrapped_by_trainers_stores_and_engines_alone():
    assert "training/local.py" in users("unwrap")
    assert {file for file in users("unwrap") if not file.startswith(UNWRAPPERS)} == set()


def test_no_file_reaches_into_a_private_adapter():
    assert users("_adapter") == {"adapters.py"}


def test_nothing_is_unpickled():
    """torch.load, and whatever else runs a file's code."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert violations(FILES, unsafe) == []
    loads = {
        name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("torch", "load"), ("np", "load"), ("numpy", "load")}
    }
    assert loads == set()
    assert "torch.load" not in {module for tree in TREES.values() for module in imports(tree)}


def test_nothing_is_unpacked():
    """No archive that arrives can put a file anywhere: there is nothing that opens one."""
    assert violations(FILES, {"tarfile", "zipfile", "zipimport", "py7zr", "rarfile"}) == []
    assert users("unpack_archive") | users("extractall") == set()


# --- The checks themselves


def test_the_reader_of_imports_sees_them_all():
    source = "import a.b\nfrom c import d as e\ndef f():\n    import g\n    x.unwrap(1)\n"
    tree = ast.parse(source)
    assert imports(tree) == {"a.b", "c", "c.d", "g"}
    assert uses(tree, "unwrap")
    assert not uses(tree, "f")
    assert within("fedsdr.data.rows", {"fedsdr.data"})
    assert not within("fedsdr.database", {"fedsdr.data"})


def test_flower_is_known_to_the_files_that_carry_messages_alone():
    carriers = {f"deploy/{file}.py" for file in ("flower", "grid", "client_app", "server_app")}
    assert {line.split()[0] for line in violations(FILES, {"flwr"})} == carriers


def test_what_flower_starts_for_every_message_imports_nothing_heavy():
    """The relay's process is new each time: it must not wait for torch."""
    program = (
        "import sys, fedsdr.deploy.client_app; "
        "print(sorted({'torch', 'transformers', 'peft'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_judges_endpoint_is_spoken_to_in_one_file():
    http = {"openai", "httpx", "urllib.request", "http", "requests"}
    assert {line.split()[0] for line in violations(FILES, http)} == {"judge/client.py"}
