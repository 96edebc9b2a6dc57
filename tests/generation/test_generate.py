"""Generation: greedy as transformers does it, sampling as each row's own seed says."""

import numpy as np
import pytest
import torch
from scipy import stats

from fedsdr.generation import batched as generation
from fedsdr.generation.batched import generate_batch, generation_mode, in_batches
from fedsdr.generation.sampling import Job
from fedsdr.generation.slots import supports_slots
from fedsdr.generation.streaming import TokenStream
from fedsdr.model.prepacked import prepacked_weights
from support.sampling_tests import p_value, softmax
from support.tiny_models import FAMILIES, VOCABULARY, logits, make, random_ids

NEVER = 59  # a token that the greedy texts below do not have
families = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = [random_ids(1, length, seed)[0].tolist() for seed, length in enumerate((1, 5, 17, 9, 2))]


def reference(model, prompt: list[int], limit: int, stop: int | list[int]) -> list[int]:
    """transformers' own greedy search on one prompt without padding."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@families
def test_greedy_is_transformers_own_row_by_row(family):
    model = make(family)
    free = [reference(model, prompt, 14, NEVER) for prompt in PROMPTS]
    assert len({tuple(row) for row in free}) == len(PROMPTS)
    jobs = [Job(prompt, 14, seed) for seed, prompt in enumerate(PROMPTS)]
    assert generate_batch(model, jobs, NEVER) == free
    stop = free[0][5]  # now at least one row ends early, and others may
    wanted = [reference(model, prompt, 14, stop) for prompt in PROMPTS]
    assert len(wanted[0]) <= 6
    assert len(max(wanted, key=len)) == 14
    assert generate_batch(model, jobs, stop) == wanted


@families
def test_every_row_has_its_own_limit(family):
    model = make(family)
    limits = [0, 3, 12, 1, 7]
    whole = generate_batch(model, [Job(prompt, 12) for prompt in PROMPTS], NEVER)
    cut = [Job(p, limit) for p, limit in zip(PROMPTS, limits, strict=True)]
    wanted = [row[:limit] for row, limit in zip(whole, limits, strict=True)]
    assert generate_batch(model, cut, NEVER) == wanted


def test_no_tokens_are_asked_for():
    assert generate_batch(make("llama"), [Job([7], 0), Job([8, 9], 0)], NEVER, 1.0) == [[], []]


@families
@pytest.mark.parametrize("mode", generation.GenerationMode)
def test_any_of_several_stop_tokens_ends_a_row(family, mode, monkeypatch):
    model = make(family)
    free = [reference(model, prompt, 14, NEVER) for prompt in PROMPTS]
    ends = [free[0][5], free[1][3]]
    monkeypatch.setattr(generation, "generation_mode", lambda *_, **__: mode)
    if mode is generation.GenerationMode.CONTINUOUS and not supports_slots(model):
        pytest.skip("its windows need another mode")
    wanted = [reference(model, prompt, 14, ends) for prompt in PROMPTS]
    assert {row[-1] for row in wanted} >= set(ends)
    jobs = [Job(prompt, 14) for prompt in PROMPTS]
    assert generate_batch(model, jobs, frozenset(ends)) == wanted
    stream = TokenStream(model)
    for prompt, row in zip(PROMPTS, wanted, strict=True):
        written = row[:-1] if row[-1] in ends else row
        assert list(stream.generate(prompt, 14, frozenset(ends))) == written


def test_a_row_ends_with_its_first_stop_token():
    model = make("llama")
    row = generate_batch(model, [Job(PROMPTS[1], 12)], NEVER)[0]
    for stop in set(row):
        got = generate_batch(model, [Job(PROMPTS[1], 12), Job(PROMPTS[2], 12)], stop)[0]
        assert got == row[: row.index(stop) + 1]


def test_the_model_runs_no_longer_than_the_longest_row():
    """Once for what precedes the prompts' last tokens, and then once a token."""
    model = make("llama")
    row = generate_batch(model, [Job(PROMPTS[1], 12)], NEVER)[0]
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    generate_batch(model, [Job(PROMPTS[1], 12), Job(PROMPTS[2], 3)], stop=row[5])
    assert len(steps) == 1 + max(row.index(row[5]) + 1, 3)
    steps.clear()
    generate_batch(model, [Job(PROMPTS[1], 4), Job(PROMPTS[2], 3)], NEVER)
    assert len(steps) == 1 + 4


@families
def test_sampling_depends_on_the_rows_own_seed_alone(family):
    # In float64, so that padding does not round a number across an interval's end; transformers'
    # eager attention, which Gemma 2 needs, takes float64's smallest number for -inf on padding.
    model = make(family, dtype=torch.float32 if family == "gemma" else torch.float64)
    jobs = [Job(prompt, 4 + 5 * i, seed=i % 3) for i, prompt in enumerate(PROMPTS)]
    together = generate_batch(model, jobs, NEVER, temperature=1.5)
    assert [generate_batch(model, [job], NEVER, temperature=1.5)[0] for job in jobs] == together
    assert generate_batch(model, jobs[::-1], NEVER, temperature=1.5) == together[::-1]
    for row, job in zip(together, jobs, strict=True):
        assert len(row) == job.limit or row[-1] == NEVER
    assert len({tuple(row[:4]) for row in together}) == len(jobs)


def test_another_seed_gives_another_text_and_the_same_seed_the_same():
    model = make("llama")
    jobs = [Job(PROMPTS[1], 20, seed) for seed in (0, 1, 0, 2)]
    a, b, again, c = generate_batch(model, jobs, NEVER, temperature=1.0)
    assert a == again
    assert len({tuple(a), tuple(b), tuple(c)}) == 3


def test_a_low_temperature_is_greedy():
    model = make("llama")
    jobs = [Job(prompt, 6, seed=5) for prompt in PROMPTS]
    assert generate_batch(model, jobs, NEVER, temperature=1e-4) == generate_batch(
        model, jobs, NEVER
    )


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_the_first_token_follows_the_softmax(temperature):
    model = make("llama")
    jobs = [Job(PROMPTS[1], 1, seed) for seed in range(4000)]
    tokens = [row[0] for row in generate_batch(model, jobs, NEVER, temperature)]
    row = logits(model, torch.tensor([PROMPTS[1]]))[0, -1]
    assert p_value(tokens, softmax(row, temperature)) > 0.01
    assert p_value(tokens, softmax(row, 1.2 * temperature)) < 1e-6  # so the test can tell


def test_the_tokens_of_a_row_are_drawn_independently():
    """A model that ignores what it reads draws each token from one distribution."""
    model = make("llama")
    model.model.embed_tokens.weight.data[:] = model.model.embed_tokens.weight.data[7]
    wanted = softmax(logits(model, torch.tensor([[7]]))[0, -1], 2.0)
    rows = generate_batch(model, [Job([7], 3, seed) for seed in range(3000)], 0, temperature=2.0)
    whole = [row for row in rows if len(row) == 3]
    without_stop = np.where(np.arange(len(wanted)) == 0, 0, wanted)
    without_stop /= without_stop.sum()
    pairs = sum(a == b for a, b, _ in whole)
    share = float(without_stop @ without_stop)
    assert stats.binomtest(pairs, len(whole), share).pvalue > 0.01
    assert p_value([row[1] for row in rows if len(row) > 1], wanted) > 0.01


# --- Continuously, against static batches

MANY = [
    Job(random_ids(1, 1 + (7 * i) % 19, i)[0].tolist(), (5 * i) % 13, seed=i % 4) for i in range(23)
]


def continuous(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on static batches are a failure."""

    def refuse(*_: object) -> None:
        raise AssertionError("in static batches")

    monkeypatch.setattr(generation, "in_batches", refuse)


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, None])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_rows_that_are_filled_again_yield_what_static_batches_do(
    family, rows, temperature, monkeypatch
):
    model = make(family, dtype=torch.float64)  # so that no sum's order decides between tokens
    stop = generate_batch(model, [Job(MANY[7].prompt, 12)], -1)[0][4]  # some rows end early
    wanted = in_batches(model, MANY, stop, temperature, 3)
    assert len({len(row) - job.limit for row, job in zip(wanted, MANY, strict=True)}) > 2
    continuous(monkeypatch)
    assert generate_batch(model, MANY, stop, temperature, rows) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_texts_of_packed_weights_are_the_plain_ones(dtype, monkeypatch):
    """In float32 all of them; in bfloat16, where likely tokens tie, the first tokens of most."""
    model = make("llama", dtype=dtype)
    jobs = [Job(job.prompt, 12) for job in MANY]
    wanted = in_batches(model, jobs, NEVER, 0.0, len(jobs))
    continuous(monkeypatch)
    got = generate_batch(model, jobs, NEVER, rows=6)
    same = [
        a[:1] == b[:1] if dtype == torch.bfloat16 else a == b
        for a, b in zip(got, wanted, strict=True)
    ]
    assert sum(same) >= (len(jobs) if dtype == torch.float32 else 0.8 * len(jobs))


def test_a_batch_shrinks_when_nothing_waits():
    model = make("llama")
    sizes = []
    generation_mode(model)  # found out before passes are counted
    model.model.embed_tokens.register_forward_hook(lambda *given: sizes.append(given[1][0].shape))
    limits = [2, 3, 9, 12, 4, 1]
    generate_batch(model, [Job([7], limit) for limit in limits], NEVER, rows=4)
    rows = [rows for rows, _ in sizes]
    assert rows == sorted(rows, reverse=True)
    assert set(rows) == {4, 2, 1}


def test_the_largest_row_alone_pays_for_its_length():
    """A step attends to as many positions as its longest row has, not to a slot's capacity."""
    model, seen = make("llama"), []
    generation_mode(model)  # found out before passes are counted
    model.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    generate_batch(model, [Job(PROMPTS[1], 4), Job(PROMPTS[3], 2)], NEVER)
    widths = [mask.shape[-1] for mask in seen if mask is not None]
    assert widths == [9, 10, 7, 8]  # the longer prompt's, then the shorter one's alone


def test_which_models_are_served_continuously():
    served = {family: supports_slots(make(family)) for family in FAMILIES}
    assert served == {"llama": True, "qwen": True, "gemma": False, "gpt2": True}
    model = make("llama")
    model.set_attn_implementation("eager")  # it adds masks instead of asking them
    assert not supports_slots(model)
    windowed = make("llama")
    windowed.config.sliding_window = 6
    assert not supports_slots(windowed)


def test_others_are_served_in_static_batches():
    model = make("gemma")
    jobs = [Job(job.prompt, 6) for job in MANY]
    sizes = []
    generation_mode(model)  # found out before passes are counted
    model.model.embed_tokens.register_forward_hook(lambda *given: sizes.append(len(given[1][0])))
    texts = generate_batch(model, jobs, NEVER, rows=8)
    assert sizes == [8] * 12 + [7] * 6
    assert texts == [reference(model, list(job.prompt), 6, NEVER) for job in jobs]


def test_packing_leaves_the_model_as_it_was():
    """Also after an error."""
    model, ids = make("llama"), random_ids(2, 5)
    before = logits(model, ids)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    with prepacked_weights(model):
        changed = [layer for layer in layers if "forward" in vars(layer)]
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError), prepacked_weights(model):
        logits(model, torch.full_like(ids, VOCABULARY))
    assert not [layer for layer in layers if "forward" in vars(layer)]
    assert torch.equal(logits(model, ids), before)
    fast = torch.backends.mkldnn.is_available() and "AVX" in torch.backends.cpu.get_cpu_capability()
    assert len(changed) == (len(layers) if fast else 0)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_logits_of_packed_weights_in_bfloat16_are_the_true_ones_but_for_its_rounding(family):
    """The truth: the same rounded weights in float32. bfloat16 rounds by at most 2^-9, and what two
    blocks make of that stays below 2^-5 of the logits' norm, packed or not; packing adds nothing.
    """
    model, ids = make(family, dtype=torch.bfloat16), random_ids(16, 9)
    exact = make(family)
    exact.load_state_dict(model.state_dict())
    truth = logits(exact, ids)
    with prepacked_weights(model):
        packed = logits(model, ids)
    errors = [float((each.float() - truth).norm()) for each in (packed, logits(model, ids))]
    assert max(errors) < 2**-5 * float(truth.norm())
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("free", [None, 1000])
def test_nothing_is_packed_where_memory_is_short(free, monkeypatch):
    monkeypatch.setattr("fedsdr.model.prepacked.free_memory", lambda _: free)
    model = make("llama")
    with prepacked_weights(model):
        assert not [layer for layer in model.modules() if "forward" in vars(layer)]


def test_no_jobs():
    assert generate_batch(make("llama"), [], NEVER) == []
