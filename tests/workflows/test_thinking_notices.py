"""What `check` says of templates that think, and of thoughts in responses."""

from fedsdr.recipe.load import parse_recipe
from fedsdr.workflows.prepare import prepare_run
from support import tiny_recipe

THOUGHT = "<think>red</think> blue"


def prepare(tmp_path, thinking):
    model = tiny_recipe.write_model(tmp_path / "model")
    template = tmp_path / "t.jinja"
    template.write_text(tiny_recipe.TEMPLATE + "{% if enable_thinking %}<think> {% endif %}")
    rows = [{"instruction": f"red {i}", "response": text} for i, text in enumerate([THOUGHT, "a"])]
    files = [tmp_path / "anna.jsonl", tmp_path / "ben.jsonl"]
    for file in files:
        tiny_recipe.write_rows(file, rows * 2)
    recipe = tiny_recipe.recipe_tables(model, files)
    recipe["model"] |= {"template": str(template), "thinking": thinking}
    return prepare_run(parse_recipe(recipe))


def test_thoughts_that_are_left_out_are_counted(tmp_path):
    run = prepare(tmp_path, "off")
    [words] = [str(notice) for notice in run.notices if "thought" in notice.words]
    assert words == (
        "cut: the thoughts at the beginning of responses "
        "(anna 2, ben 2; first anna.jsonl:1): "
        'with model.thinking = "on" they are learnt'
    )
    assert run.records.template == f"{tmp_path}/t.jinja, with thinking off"


def test_thoughts_that_are_learnt_are_not(tmp_path):
    run = prepare(tmp_path, "on")
    assert not [notice for notice in run.notices if "thought" in notice.words]
    assert run.records.template.endswith("with thinking on")
