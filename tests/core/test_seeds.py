"""Seeds: the same for ever, and different for every purpose."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.seeds import derive_seed, seeded_generator

# hashlib.blake2b(b"7\x1fbatches\x1f3\x1fclient-a", digest_size=8), big-endian, shifted by 1
GOLDEN = 2980127816807901084


def test_a_seed_never_changes():
    assert derive_seed(7, "batches", 3, "client-a") == GOLDEN


def test_every_purpose_has_its_own_seed():
    seeds = {
        derive_seed(seed, purpose, round, client)
        for seed in range(4)
        for purpose in ("batches", "fresh", "cohort")
        for round in range(12)
        for client in ("a", "b", "1")
    }
    assert len(seeds) == 4 * 3 * 12 * 3


def test_names_do_not_run_together():
    cases = [
        (1, "ab"),
        (1, "a", "b"),
        (1, "b", "a"),
        (1,),
        (1, ""),
        (11, "b"),
        (1, 1, "b"),
        (1, 11),
    ]
    assert len({derive_seed(*case) for case in cases}) == len(cases)


@settings(deadline=None)
@given(st.integers(), st.lists(st.text() | st.integers(), max_size=4))
def test_a_seed_fits_into_torchs_generator(seed, names):
    value = derive_seed(seed, *names)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, *names)
    assert seeded_generator(seed, *names).initial_seed() == value


def test_generators_do_not_disturb_each_other():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    first = torch.rand(5, generator=seeded_generator(1, "a"))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(torch.rand(5, generator=seeded_generator(1, "a")), first)
