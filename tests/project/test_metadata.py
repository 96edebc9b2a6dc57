"""What the repository says of itself agrees: versions, citation, forms for issues."""

import tomllib

import yaml

import fedsdr
from support.repository import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == fedsdr.__version__ == CITATION["version"]


def test_the_citation_names_the_paper_and_the_licence_of_the_package():
    [paper] = CITATION["references"]
    [identifier] = paper["identifiers"]
    assert identifier["value"].removeprefix("arXiv:") in PROJECT["urls"]["Paper"]
    assert CITATION["license"] == PROJECT["license"]


def test_every_form_can_be_filled_in():
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    for path in FORMS:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = [field["id"] for field in form["body"]]
        assert form["name"]
        assert form["description"]
        assert len(set(names)) == len(names) > 0
        assert all(field["attributes"]["label"] for field in form["body"])


def test_a_report_of_a_bug_comes_with_a_recipe_and_what_check_says_of_it():
    [bug] = [path for path in FORMS if path.stem == "bug"]
    fields = {field["id"]: field for field in yaml.safe_load(bug.read_text())["body"]}
    assert "fedsdr check" in fields["check"]["attributes"]["label"]
    for name in ("recipe", "check", "environment"):
        assert fields[name]["validations"]["required"]
