"""The script behind `make mutants`: its sample, what it reads of mutmut, and its count."""

import mutants
from mutants import Row, Survivor

SHOWN = """# fedsdr.core.adapters.x_cosine__mutmut_3: survived
--- src/fedsdr/core/adapters.py
+++ src/fedsdr/core/adapters.py
@@ -1,4 +1,4 @@
 def cosine(a: Adapter, b: Adapter) -> float:
-    length = norm(a) * norm(b)
+    length = norm(a) / norm(b)
     return dot(a, b) / length if length else 0.0
"""
COSINE = Survivor(
    "core.adapters.cosine", "length = norm(a) * norm(b)", "length = norm(a) / norm(b)"
)
METHOD = "fedsdr.deploy.client.journal.xǁJournalǁ_entry__mutmut_12"


def test_a_sample_is_a_function_of_seed_and_names_alone():
    names = {f"fedsdr.core.adapters.x_f__mutmut_{i}": "not checked" for i in range(100)}
    sample = mutants.draw_sample(names, 20, seed=1)
    backwards = dict(reversed(names.items()))
    assert sample == mutants.draw_sample(backwards, 20, seed=1)
    assert sample != mutants.draw_sample(names, 20, seed=2)
    assert len(set(sample)) == 20
    assert {*sample} < {*names}
    assert mutants.draw_sample(names, 200, seed=1) == sorted(names)


def test_what_has_a_verdict_is_run_again_only_on_request_and_if_it_survived():
    statuses = ("not checked", "survived", "no tests", "killed", "timeout")
    assert [each for each in statuses if mutants.needs_run(each, again=False)] == [*statuses[:1]]
    assert [each for each in statuses if mutants.needs_run(each, again=True)] == [*statuses[:3]]


def test_a_change_is_read_from_a_diff():
    assert mutants.read_change("fedsdr.core.adapters.x_cosine__mutmut_3", SHOWN) == COSINE


def test_names_of_functions_and_methods():
    assert mutants.function_of(METHOD) == "deploy.client.journal.Journal._entry"
    private = "fedsdr.core.products.x__layer_sum__mutmut_1"
    assert mutants.function_of(private) == "core.products._layer_sum"


def test_reasons_are_kept_in_the_list_and_go_with_the_change(tmp_path):
    path = tmp_path / "mutants.csv"
    assert mutants.load_survivors(path) == []
    known = COSINE._replace(reason='equal, for "a" and b,\nwhatever they are')
    mutants.save_survivors(path, [known])
    assert mutants.load_survivors(path) == [known]
    other = COSINE._replace(after="length = None")
    found = mutants.with_reasons({"m1": COSINE, "m2": other}, mutants.load_survivors(path))
    assert found == {"m1": known, "m2": other}


def test_a_score_counts_no_mutant_that_equals_the_code():
    core = "fedsdr.core.adapters.x_cosine__mutmut_"
    statuses = {f"{core}{i}": "killed" for i in range(6)}
    statuses |= {f"{core}6": "timeout", f"{core}7": "survived", f"{core}8": "survived"}
    statuses[METHOD] = "no tests"
    survived = {
        f"{core}7": COSINE,
        f"{core}8": COSINE._replace(reason="equal"),
        METHOD: COSINE,
    }
    rows = mutants.count_rooms(statuses, survived)
    assert rows == [
        Row("core", 9, 7, 1), Row("deploy/client", 1, 0, 0), Row("all", 10, 7, 1),
    ]  # fmt: skip
    assert [row.score for row in rows] == [7 / 8, 0, 7 / 9]
    assert mutants.format_table(rows).splitlines()[-1] == "| all | 10 | 7 | 1 | 78% |"
