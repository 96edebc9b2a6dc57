"""What `import fedsdr` offers: light, typed, documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fedsdr

PUBLIC = [name for name in fedsdr.__all__ if name != "__version__"]


def test_the_import_itself_loads_no_library():
    program = (
        "import sys; before = {*sys.modules}; import fedsdr; dir(fedsdr); fedsdr.__version__; "
        "new = {each.partition('.')[0] for each in {*sys.modules} - before}; "
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "['fedsdr']\n", done.stderr


def test_a_type_checker_sees_the_names_that_there_are():
    tree = ast.parse(Path(fedsdr.__file__).read_text(encoding="utf-8"))
    seen = {
        (node.module, alias.asname)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert seen == {(getattr(fedsdr, name).__module__, name) for name in PUBLIC}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    it = getattr(fedsdr, name)
    assert inspect.getdoc(it)
    if inspect.isclass(it) and it.__module__.startswith("fedsdr.api"):
        methods = [each for key, each in vars(it).items() if not key.startswith("_")]
        methods = [
            each for each in methods if inspect.isroutine(each) or isinstance(each, property)
        ]
        assert [each for each in methods if not inspect.getdoc(each)] == []


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="'fedsdr' has no attribute 'trian'"):
        fedsdr.trian  # noqa: B018
