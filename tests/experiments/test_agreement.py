"""How far a teacher agrees with what is learnt: wholly with what it writes greedily itself."""

from dataclasses import replace

import pytest

from experiments.agreement import teacher_agreement
from fedsdr.core.progress import silent_reporter
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import prepare_run
from support.tiny_recipe import write_recipe


def test_a_teacher_agrees_with_its_own_greedy_words_and_hardly_with_others(tmp_path):
    run = prepare_run(
        load_recipe(write_recipe(tmp_path, federation={"targets": "raw", "loss": "soft"}))
    )
    loaded = run.load(silent_reporter())
    kinds = client_examples(loaded, run.methods[-1].within(tmp_path), silent_reporter())
    given = [example for each in kinds.values() for example in each["raw"]]
    jobs = [Job(each.reference.prompt, 3) for each in given]
    own = [
        replace(each, response=tuple(ids))
        for each, ids in zip(given, generate_batch(loaded.base.model, jobs, stop=()), strict=True)
    ]
    assert teacher_agreement(loaded, own, rows=5) == (22, 1.0, 1.0, 1.0)
    changed = [replace(each, response=(*each.response[:2], each.response[2] ^ 1)) for each in own]
    found = teacher_agreement(loaded, [*changed, replace(own[0], reference=None)])
    assert found == (22, pytest.approx(2 / 3), 1.0, 0.0)
