"""Public names of the package: each is defined once, and a function says what it gives."""

import ast
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import fedsdr
from fedsdr.algorithms.table import TABLES
from fedsdr.core import layout

ROOT = Path(fedsdr.__file__).parent
# Type variables, and what typer and Flower look for by name.
SEVERAL = {"T", "app", "main"}
MATHEMATICAL = {"add", "subtract", "scale", "dot", "norm", "cosine"}
ENTRIES = {"main", "train"}  # of programs and of Flower's apps
# What the commands of the command line are called, as functions of `fedsdr` itself.
VERBS = {"check", "plan", "run", "compare", "demo", "distill", "diagnose", "rewrite"}
# Words for which the field has better ones: "informed", "next to", "no one", "together with" ...
DIALECT = re.compile(
    r"\b(told|beside|nobody|company|whereabouts|wears?|dealt|holdings|is said|lies? apart|"
    r"taken apart|told apart|put to|strangers?)\b",
    re.IGNORECASE,
)


def public(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines for others."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        names = [node.target.id]
    else:
        names = []
    return [name for name in names if not name.startswith("_") and name != "log"]


def defined() -> dict[str, list[str]]:
    """Public name -> the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in public(node):
                found[name].append(path.relative_to(ROOT).as_posix())
    return found


def test_a_public_name_is_defined_once():
    several = {name: files for name, files in defined().items() if len(files) > 1}
    assert several.keys() == SEVERAL, several


def test_a_function_of_one_word_is_an_algorithm_mathematics_or_a_verb_of_the_api():
    words = {
        node.name
        for path in ROOT.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and "_" not in node.name
    }
    algorithms = {name for table in TABLES.values() for name in table}
    assert words - algorithms - MATHEMATICAL - ENTRIES - VERBS == set()


def test_a_file_of_a_run_folder_is_spelt_in_one_place():
    """Folders are left out: "global" or "private" are words of other things too."""
    spelt = {value for name, value in vars(layout).items() if name.isupper() and "." in value[1:]}
    assert len(spelt) > 15
    again = {
        (path.relative_to(ROOT).as_posix(), node.value)
        for path in ROOT.rglob("*.py")
        if path != Path(layout.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in spelt
    }
    assert again == set()


def test_the_reader_of_names_sees_them_all():
    source = "def f():\n    g = 1\nclass C: pass\nX: int = 1\nY = Z = 2\n_p = 3\nlog = 4\n"
    names = [name for node in ast.parse(source).body for name in public(node)]
    assert names == ["f", "C", "X", "Y", "Z"]


def dialect(path: Path) -> list[str]:
    """What names, strings and comments of a file say in words that are banned, with the line."""
    with path.open("rb") as file:
        return [
            f"{path.name}:{token.start[0]}: {found[0]}"
            for token in tokenize.tokenize(file.readline)
            if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT)
            for found in DIALECT.finditer(token.string.replace("_", " "))
        ]


def test_texts_are_plain_english():
    assert [words for path in sorted(ROOT.rglob("*.py")) for words in dialect(path)] == []


def test_the_reader_of_texts_sees_names_strings_and_comments(tmp_path):
    source = (
        '"""What it is told."""\nx = f(nobody)  # beside it\ntold_so = "the company"\nfolded = 1\n'
    )
    (tmp_path / "a.py").write_text(source)
    assert dialect(tmp_path / "a.py") == [
        "a.py:1: told", "a.py:2: nobody", "a.py:2: beside", "a.py:3: told", "a.py:3: company",
    ]  # fmt: skip
