"""Rewriting: cached, resumable, reproducible; refused rewrites leave the raw response in place."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.distillation import rewrite
from fedsdr.distillation.cache import RewriteCache, job_key
from fedsdr.distillation.rewrite import Rewritten, sample_pairs, summarise_rewrites
from fedsdr.distillation.teacher import rewriting_job
from fedsdr.generation.sampling import Job, Stop
from fedsdr.model.identity import tensors_digest
from support.rewriting import CHAT, RECORDS, options, record, rewrite_all
from support.tiny_models import make, tokenizer


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six records make several of them."""
    monkeypatch.setattr(rewrite, "REWRITE_GROUP", 1)


Generated = list[list[int]]


def script(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Job, int], str]) -> list[Any]:
    """Put `answer(job, number of the call)` in the model's place; returns the calls as made."""
    calls: list[Any] = []

    def generate(
        model: Any, jobs: Sequence[Job], stop: int, temperature: float, rows: int
    ) -> Generated:
        calls.append((list(jobs), temperature))
        return [CHAT.response_ids(answer(job, len(calls))) for job in jobs]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    return calls


def refuse_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any) -> Generated:
        raise AssertionError("generated, though all is in the cache")

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)


# --- Cache and resumption

SAMPLED = {"temperature": 1.0, "attempts": 3, "checks": ("truncated",)}


BEST = {**SAMPLED, "prefer": "shorter"}


@pytest.mark.parametrize("changes", [{}, SAMPLED, BEST])
def test_a_second_time_nothing_is_generated(tmp_path, monkeypatch, changes):
    first = rewrite_all(tmp_path, RECORDS, **changes)
    refuse_to_generate(monkeypatch)
    assert rewrite_all(tmp_path, RECORDS, **changes) == first
    assert rewrite_all(tmp_path, RECORDS[::-1], **changes) == first[::-1]


@pytest.mark.parametrize("sampled", [SAMPLED, BEST])
def test_an_interrupted_distillation_ends_with_the_same_texts(tmp_path, monkeypatch, sampled):
    wanted = rewrite_all(tmp_path / "whole", RECORDS, **sampled)
    real, calls = rewrite.GENERATORS["fedsdr"], 0

    def dies_at(last: int) -> Callable[..., Generated]:
        def generate(*arguments: Any) -> Generated:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            return real(*arguments)

        return generate

    for last in range(7):  # three batches of the first attempt, and some of the later ones
        calls = 0
        folder = tmp_path / str(last)
        monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", dies_at(last))
        with pytest.raises(KeyboardInterrupt):
            rewrite_all(folder, RECORDS, **SAMPLED)
        calls = 0
        monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", dies_at(10**6))
        resumed = rewrite_all(folder, RECORDS, **SAMPLED)
        assert resumed == wanted
        assert calls + last == 9  # no batch that was done is done again


def test_a_group_is_several_times_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite, "REWRITE_GROUP", 2)
    calls = script(monkeypatch, lambda job, call: "one two")
    rewrite_all(tmp_path, RECORDS)
    assert [len(jobs) for jobs, _ in calls] == [4, 2]


def test_rewrites_depend_on_the_seed_if_sampled_and_not_if_greedy(tmp_path):
    loose = {"checks": ()}
    hot = [rewrite_all(tmp_path, RECORDS, seed, temperature=1.0, **loose) for seed in (0, 1)]
    cold = [rewrite_all(tmp_path / str(seed), RECORDS, seed, **loose) for seed in (0, 1)]
    assert [r.text for r in hot[0]] != [r.text for r in hot[1]]
    assert cold[0] == cold[1]
    assert hot[0][0].text == hot[0][-1].text  # equal records have equal rewrites


def test_other_records_and_batch_sizes_do_not_change_a_rewrite(tmp_path):
    whole = rewrite_all(tmp_path / "a", RECORDS, **SAMPLED)
    assert rewrite_all(tmp_path / "b", RECORDS, **{**SAMPLED, "batch_size": 5}) == whole
    assert rewrite_all(tmp_path / "c", RECORDS[2:4], **SAMPLED) == whole[2:4]


JOB = Job([5, 6], 8, seed=1)


@pytest.mark.parametrize(
    ("weights", "job", "temperature", "same"),
    [
        ("w", Job((5, 6), 8, 1), 1.0, True),
        ("w", Job([5, 6], 8, 1), 1.0, True),
        ("v", Job([5, 6], 8, 1), 1.0, False),
        ("w", Job([6, 5], 8, 1), 1.0, False),
        ("w", Job([56], 8, 1), 1.0, False),
        ("w", Job([5, 6], 9, 1), 1.0, False),
        ("w", Job([5, 6], 8, 2), 1.0, False),
        ("w", Job([5, 6], 8, 1), 0.5, False),
        ("w", Job([5, 6], 8, 1), 0.0, False),
    ],
)
def test_a_cache_key_covers_all_that_a_text_depends_on(weights, job, temperature, same):
    assert (job_key(weights, job, temperature) == job_key("w", JOB, 1.0)) is same


def test_a_greedy_key_does_not_depend_on_the_seed():
    assert job_key("w", JOB, 0.0) == job_key("w", Job([5, 6], 8, seed=2), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_changes_with_any_weight(dtype):
    model = make("llama", dtype=dtype)
    first = tensors_digest(model.state_dict())
    assert tensors_digest(make("llama", dtype=dtype).state_dict()) == first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[-1] += 1
            changed = tensors_digest(model.state_dict())
            assert changed != first
            first = changed
    assert tensors_digest(make("llama", seed=1, dtype=dtype).state_dict()) != first


def test_the_cache_is_its_owners_alone(tmp_path):
    path = tmp_path / "deep" / "cache.sqlite"
    with RewriteCache(path) as cache:
        cache.put({"key": [1, 2]})
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes) >= {"cache.sqlite", "cache.sqlite-wal"}
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_returns_what_was_put(tmp_path):
    with RewriteCache(tmp_path / "c") as cache:
        assert cache.get("key") is None
        cache.put({"key": [1, 2], "none": []})
        cache.put({"key": (3,)})
    with RewriteCache(tmp_path / "c") as cache:
        assert cache.get("key") == [3]
        assert cache.get("none") == []


def test_a_broken_cache_is_the_users_error(tmp_path):
    (tmp_path / "c").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="delete it"):
        RewriteCache(tmp_path / "c")


def test_a_cache_that_is_made_on_a_full_disk_is_not_called_broken(tmp_path, file_limit):
    with file_limit(512), pytest.raises(UserError, match=r"cannot write .*/c: .*: make room"):
        RewriteCache(tmp_path / "c")
    with RewriteCache(tmp_path / "c") as cache:
        cache.put({"key": [1]})
        assert cache.get("key") == [1]


def test_a_cache_without_room_is_the_users_error_and_keeps_what_it_had(tmp_path):
    with RewriteCache(tmp_path / "c") as cache:
        cache.put({"key": [1]})
        cache._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(UserError, match=r"cannot write .*full: make room"):
            cache.put({"key": [2], "other": list(range(9999))})
        cache._db.execute("PRAGMA max_page_count = 1000")
        assert (cache.get("key"), cache.get("other")) == ([1], None)
        cache.put({"other": [3]})
    with RewriteCache(tmp_path / "c") as cache:
        assert cache.get("other") == [3]


def test_a_cache_that_another_process_holds_is_the_users_error(tmp_path):
    with RewriteCache(tmp_path / "c") as cache, RewriteCache(tmp_path / "c") as other:
        cache._db.execute("PRAGMA busy_timeout = 1")
        other._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"locked.*wait for the process"):
            cache.put({"key": [1]})


def test_a_cache_that_is_damaged_while_open_is_the_users_error(tmp_path):
    with RewriteCache(tmp_path / "c") as cache:
        cache._db.execute("DROP TABLE rewrites")
        with pytest.raises(UserError, match="cannot read the rewrite cache"):
            cache.get("key")


# --- The request


def test_the_request_is_the_last_turn_with_the_response_in_it():
    turns = (Turn("system", "a"), Turn("user", "b"), Turn("assistant", "c"), Turn("user", "d"))
    job = rewriting_job(CHAT, Record(turns, "e f"), options(), 0, 0)
    words = CHAT.tokenizer.convert_ids_to_tokens(list(job.prompt))
    asked = "<ask> a <answer> <ask> b <answer> c <end> <ask> d reference e f rewrite <answer>"
    assert words == asked.split()


def test_braces_in_the_clients_text_are_left_alone():
    chat = ChatFormat(tokenizer("{{ messages[-1]['content'] }}"))
    seen = []
    chat.control.encode = lambda text, after="": seen.append(text) or []  # type: ignore
    raw = record("say {response} and {x} {{y}} \\1", "{instruction} {0} {response}")
    rewriting_job(chat, raw, options(prompt="<{instruction}|{response}|{instruction}>"), 0, 0)
    said = "say {response} and {x} {{y}} \\1"
    assert f"<{said}|{{instruction}} {{0}} {{response}}|{said}>" in seen


@pytest.mark.parametrize(
    ("words", "least", "ratio", "limit"),
    [(3, 1, 2.0, 8), (3, 20, 2.0, 20), (4, 1, 1.5, 8), (9, 1, 0.25, 3), (9, 10, 1.0, 10)],
)
def test_the_limit_follows_the_reference(words, least, ratio, limit):
    """`words` and the end of turn, times the ratio, but at least `least`."""
    given = options(min_tokens=least, max_ratio=ratio)
    job = rewriting_job(CHAT, record("q", " ".join("a" * words)), given, 0, 0)
    assert job.limit == max(least, math.ceil(ratio * (words + 1))) == limit


# --- The gate


def test_an_accepted_rewrite_replaces_the_response(tmp_path, monkeypatch):
    script(monkeypatch, lambda job, call: "one two")
    done = rewrite_all(tmp_path, RECORDS)
    assert done == [Rewritten(r, "one two", reason="", attempts=1) for r in RECORDS]
    assert {r.source for r in done} == {"rewritten"}


def test_a_refused_rewrite_leaves_the_raw_response(tmp_path, monkeypatch):
    said = {"q": "", "two": "my response", "x y z": "very " * 12}
    by_prompt = {
        tuple(rewriting_job(CHAT, record(text), options(), 0, 0).prompt): answer
        for text, answer in said.items()
    }
    script(monkeypatch, lambda job, call: by_prompt.get(tuple(job.prompt), "one two"))
    done = rewrite_all(tmp_path, RECORDS)
    assert [r.reason for r in done] == ["", "", "empty", "repetition", "meta_talk", ""]
    assert [r.text for r in done] == ["one two"] * 2 + ["a b"] * 3 + ["one two"]
    assert [r.source for r in done] == ["rewritten"] * 2 + ["raw"] * 3 + ["rewritten"]
    assert summarise_rewrites(done)["fallbacks"] == {"empty": 1, "repetition": 1, "meta_talk": 1}


def test_retries_have_fresh_seeds_and_their_own_temperature(tmp_path, monkeypatch):
    calls = script(monkeypatch, lambda job, call: "my response" if call < 3 else "one two")
    one = RECORDS[:1]
    done = rewrite_all(tmp_path, one, temperature=0.25, retry_temperature=1.25, attempts=5)
    assert done == [Rewritten(one[0], "one two", "", attempts=3)]
    assert [temperature for _, temperature in calls] == [0.25, 1.25, 1.25]
    assert len({jobs[0].seed for jobs, _ in calls}) == 3
    assert len({(tuple(jobs[0].prompt), jobs[0].limit) for jobs, _ in calls}) == 1


def test_only_refused_records_are_tried_again(tmp_path, monkeypatch):
    long = len(rewriting_job(CHAT, RECORDS[1], options(), 0, 0).prompt)

    def answer(job: Job, call: int) -> str:
        return "my response" if len(job.prompt) == long else "one two"

    calls = script(monkeypatch, answer)
    done = rewrite_all(tmp_path, RECORDS, attempts=3)
    assert [r.attempts for r in done] == [1, 3, 1, 1, 1, 1]
    assert [r.reason for r in done] == ["", "meta_talk", "", "", "", ""]
    assert [len(jobs) for jobs, _ in calls] == [2, 2, 2, 1, 1]


SHORTER = {"attempts": 4, "prefer": "shorter", "temperature": 0.25, "retry_temperature": 1.25}


def test_the_shortest_accepted_rewrite_is_kept(tmp_path, monkeypatch):
    """Refused ones, however short, and later ones of the same length do not replace it."""
    said = ["one two x", "my response", "one two", "two one"]
    calls = script(monkeypatch, lambda job, call: said[call - 1])
    done = rewrite_all(tmp_path, RECORDS[:1], **SHORTER)
    assert done == [Rewritten(RECORDS[0], "one two", "", attempts=4)]
    assert [temperature for _, temperature in calls] == [0.25, 1.25, 1.25, 1.25]
    script(monkeypatch, lambda job, call: "")
    refused = rewrite_all(tmp_path / "refused", RECORDS[:1], **SHORTER)
    assert refused == [Rewritten(RECORDS[0], "a b", "empty", attempts=4)]


def test_preferring_shorter_rewrites_spends_every_attempt_on_every_record(tmp_path, monkeypatch):
    sizes = [
        len(job.prompt) + job.limit
        for job in (rewriting_job(CHAT, r, options(), 0, 0) for r in RECORDS)
    ]
    calls = script(monkeypatch, lambda job, call: "one two")
    done = rewrite_all(tmp_path, RECORDS, context=max(sizes) - 1, **SHORTER)
    assert [r.attempts for r in done] == [0 if size == max(sizes) else 4 for size in sizes]
    assert sum(len(jobs) for jobs, _ in calls) == 4 * sum(size < max(sizes) for size in sizes)


def test_preferring_shorter_rewrites_of_one_attempt_is_the_same_as_the_first(tmp_path):
    first = rewrite_all(tmp_path / "a", RECORDS, temperature=1.0)
    assert rewrite_all(tmp_path / "b", RECORDS, temperature=1.0, prefer="shorter") == first


def test_a_text_without_its_end_of_turn_is_truncated(tmp_path, monkeypatch):
    def generate(
        model: Any, jobs: Sequence[Job], stop: Stop, temperature: float, rows: int
    ) -> Generated:
        assert stop == CHAT.ends
        return [CHAT.response_ids("one two")[:-1] for _ in jobs]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    assert [r.reason for r in rewrite_all(tmp_path, RECORDS)] == ["truncated"] * len(RECORDS)


def test_what_does_not_fit_into_the_context_is_not_generated(tmp_path, monkeypatch):
    calls = script(monkeypatch, lambda job, call: "one two")
    sizes = [
        len(job.prompt) + job.limit
        for job in (rewriting_job(CHAT, r, options(), 0, 0) for r in RECORDS)
    ]
    context = sorted(set(sizes))[-2]  # the longest does not fit, the next one just does
    done = rewrite_all(tmp_path, RECORDS, context=context, attempts=2)
    assert [r.reason for r in done] == ["too_long" if s > context else "" for s in sizes]
    assert [r.attempts for r in done] == [0 if s > context else 1 for s in sizes]
    assert done[1] == Rewritten(RECORDS[1], "a b", "too_long", 0)
    assert sum(len(jobs) for jobs, _ in calls) == 5


def test_a_client_without_records(tmp_path, monkeypatch):
    refuse_to_generate(monkeypatch)
    assert rewrite_all(tmp_path, []) == []


# --- What is told of it

TOLD = [
    Rewritten(record("p", "a b c", answer="a"), "a d", "", 1),
    Rewritten(record("q", "a b c", answer="a"), "d e f g", "", 2),  # wrong
    Rewritten(record("r", "a", answer="a"), "a", "empty", 3),
    Rewritten(record("s", "a"), "b", "", 1),  # nothing to check it by
]


def test_a_target_is_wrong_if_it_misses_the_gold_answer():
    assert [r.wrong for r in TOLD] == [False, True, False, None]


def test_the_summary_is_counted_by_hand():
    assert summarise_rewrites(TOLD) == {
        "records": 4,
        "rewritten": 3,
        "fallbacks": {"empty": 1},
        "attempts": 7,
        "thought_tokens": 0,
        "raw_words": 8 / 4,
        "rewrite_words": 8 / 4,
        "wrong": 1 / 2,
        "checked": 2,
        "inventions": 0,
    }
    assert summarise_rewrites(TOLD[3:])["wrong"] is None
    assert summarise_rewrites([])["raw_words"] == 0
    told = Rewritten(record("s", "a"), "as Ada Lovelace wrote", "", 1)
    assert summarise_rewrites([*TOLD, told])["inventions"] == 1


def test_reasons_are_counted_the_commonest_first():
    reasons = ["b", "a", "b", "", "b", "a", "c"]
    told = [Rewritten(RECORDS[0], "", reason, 1) for reason in reasons]
    assert list(summarise_rewrites(told)["fallbacks"].items()) == [("b", 3), ("a", 2), ("c", 1)]


def test_pairs_show_each_kind_once_before_any_twice():
    many = [*TOLD, *TOLD[3:] * 9]
    pairs = sample_pairs("c", many, seed=0, count=3)
    assert [(pair["wrong"], pair["reason"]) for pair in pairs][:2] == [(True, ""), (False, "empty")]
    assert pairs == sample_pairs("c", many[::-1], seed=0, count=3)
    assert pairs[0] == {
        "client": "c",
        "instruction": "q",
        "raw": "a b c",
        "rewrite": "d e f g",
        "source": "rewritten",
        "reason": "",
        "wrong": True,
    }
    assert len(sample_pairs("c", TOLD, seed=0, count=9)) == 4


def test_a_response_that_calls_functions_stays_and_a_tools_result_is_seen(tmp_path, monkeypatch):
    script(monkeypatch, lambda job, call: "one two")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    result = (Turn("user", "name one"), Turn("assistant", "a"), Turn("tool", "seven eight"))
    calling = Record(result[:1], "", calls=json.dumps({"tool_calls": [call]}))
    done = rewrite_all(tmp_path, [calling, Record(result, "a b")])
    assert [(r.text, r.reason, r.attempts) for r in done] == [("", "calls", 0), ("one two", "", 1)]
    request = CHAT.tokenizer.decode(
        rewriting_job(CHAT, Record(result, "a b"), options(), 0, 0).prompt
    )
    assert "seven eight <answer> <ask> name one reference a b rewrite <answer>" in request


# --- Contrastive rewriting


def test_a_contrastive_request_has_the_plain_prompt_for_its_second_one():
    of = record("name one", "a b")
    job = rewriting_job(CHAT, of, options(contrast=0.5), 0, 0)
    assert job.contrast is not None
    assert [*job.contrast.prompt] == [*CHAT.prompt_ids(of.prompt)]
    assert job.contrast.strength == 0.5
    assert rewriting_job(CHAT, of, options(), 0, 0) == replace(job, contrast=None)


def test_the_cache_tells_contrasts_apart():
    of = record("name one", "a b")
    jobs = [rewriting_job(CHAT, of, options(contrast=each), 0, 0) for each in (0, 0.5, 1)]
    keys = {job_key("weights", job, 0.0) for job in jobs}
    assert len(keys) == 3


def test_contrast_needs_our_own_generator():
    with pytest.raises(ValueError, match='needs the generator "fedsdr"'):
        options(contrast=1, generator="transformers")
