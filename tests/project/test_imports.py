"""Which room may import which, read from the source: one ordered list keeps the parts apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedsdr
from support.repository import REPOSITORY

ROOT = Path(fedsdr.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# A room imports itself and rooms above it in this list, never one below.
ROOMS = (
    "core",
    "recipe/sections",
    "algorithms",
    "recipe",
    "data",
    "model",
    "generation",
    "distillation",
    "training",
    "evaluate",
    "diagnosis",
    "lab",
    "report",
    "tracking",
    "estimate",
    "federation",
    "workflows",
    "deploy/protocol",
    "deploy/client",
    "deploy/server",
    "deploy/sites",
    "deploy/flower",
    "export",
    "chat",
    "judge",
    "api",
    "cli",
)
# Libraries that are known to some rooms alone.
KNOWN_TO = {
    "transformers": ("core", "model", "generation", "distillation", "lab", "export"),
    "peft": ("model",),
    "datasets": ("data", "evaluate"),
    "flwr": ("deploy/flower",),
    "lm_eval": ("evaluate",),
    "openai": ("judge",),
    "sqlite3": ("distillation",),
    "matplotlib": ("report",),
    "typer": ("cli",),
    "IPython": ("core",),
    "cryptography": ("deploy/protocol", "deploy/sites"),
}
WITHOUT_TORCH = ("recipe/sections", "recipe", "report", "cli", "judge", "workflows", "api")


def name(path: Path) -> str:
    """A file's path within the package: algorithms/fedavg.py."""
    return path.relative_to(ROOT).as_posix()


def room(module: str) -> str:
    """The room of a module of ours: the longest that its name begins with; "" for the top."""
    place = module.removeprefix("fedsdr").replace(".", "/").removeprefix("/") + "/"
    return max((r for r in ROOMS if place.startswith(r + "/")), key=len, default="")


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


def violations(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{name(path)} imports {module}"
        for path in paths
        for module in sorted(imports(TREES[path]))
        if within(module, forbidden)
    ]


def files_of(wanted: str) -> list[Path]:
    return [path for path in FILES if room(name(path).removesuffix(".py")) == wanted]


@pytest.mark.parametrize("place", range(len(ROOMS)), ids=ROOMS)
def test_a_room_imports_only_rooms_above_it_in_the_list(place):
    paths = files_of(ROOMS[place])
    assert len(paths) > 1
    wrong = [
        f"{name(path)} imports {module}"
        for path in paths
        for module in imports(TREES[path])
        if (other := room(module)) and ROOMS.index(other) > place and module.startswith("fedsdr.")
    ]
    assert wrong == []


def test_every_file_is_in_a_room_and_there_are_at_most_24():
    top = {name(path) for path in FILES if not room(name(path).removesuffix(".py"))}
    assert top <= {"__init__.py", "__main__.py", "deploy/__init__.py"}
    assert len({each.split("/")[0] for each in ROOMS}) <= 24


@pytest.mark.parametrize("library", KNOWN_TO)
def test_a_library_is_known_to_its_rooms_alone(library):
    users = [path for path in FILES if any(within(m, {library}) for m in imports(TREES[path]))]
    assert {room(name(path).removesuffix(".py")) for path in users} == {*KNOWN_TO[library]}


@pytest.mark.parametrize("place", WITHOUT_TORCH)
def test_what_computes_nothing_imports_no_torch(place):
    assert violations(files_of(place), {"torch"}) == []


def test_algorithms_read_no_recipe():
    assert violations(files_of("algorithms"), {"fedsdr.recipe"}) == []


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

UNWRAPPERS = (
    "core/adapters.py",
    "model/install.py",
    "training/",
    "federation/in_process.py",
    "deploy/client/operations.py",
)


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
    assert "training/local.py" in users("unwrap_private")
    assert {file for file in users("unwrap_private") if not file.startswith(UNWRAPPERS)} == set()


def test_no_file_reaches_into_a_private_adapter():
    assert users("_adapter") == {"core/adapters.py"}


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
    """No archive that arrives can put a file anywhere: nothing opens one but what reads the one
    GGUF file of a wheel, under a name of our own."""
    archives = {"tarfile", "zipfile", "zipimport", "py7zr", "rarfile"}
    assert violations(FILES, archives) == ["model/obtain.py imports zipfile"]
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


# --- The tests

TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
MODULES = [path for path in TESTS if path.name.startswith("test_")]
NO_ROOMS = {"experiments", "benchmarks", "project"}


def test_a_test_is_in_the_folder_of_its_room_under_a_name_of_its_own():
    rooms = {each.split("/")[0] for each in ROOMS}
    folders = {path.relative_to(REPOSITORY / "tests").parent.as_posix() for path in MODULES}
    assert rooms <= folders <= rooms | NO_ROOMS
    assert len({path.name for path in MODULES}) == len(MODULES)


def test_what_tests_share_is_in_support():
    """A module of tests that another one imports would run twice, and break for two reasons."""
    others = {path.stem for path in MODULES}
    wrong = [
        f"{path.name} imports {module}"
        for path in TESTS
        for module in imports(ast.parse(path.read_text(encoding="utf-8")))
        if others & {*module.split(".")}
    ]
    assert wrong == []


# --- Flower, and what is imported for it


def test_flower_is_known_to_the_files_that_carry_messages_alone():
    carriers = {
        f"deploy/flower/{file}.py" for file in ("records", "grid", "client_app", "server_app")
    }
    assert {line.split()[0] for line in violations(FILES, {"flwr"})} == carriers


@pytest.mark.parametrize("module", ["client_app", "submit"])
def test_what_flower_starts_for_every_message_and_what_waits_for_it_import_nothing_heavy(module):
    """The relay's process is new each time: it must not wait for torch. Nor does registering
    clients, or waiting for the end of a run, compute anything."""
    program = (
        f"import sys, fedsdr.deploy.flower.{module}; "
        "print(sorted({'torch', 'transformers', 'peft'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_judges_endpoint_is_spoken_to_in_one_file():
    http = {"openai", "httpx", "urllib.request", "http", "requests"}
    assert {line.split()[0] for line in violations(FILES, http)} == {"judge/client.py"}
