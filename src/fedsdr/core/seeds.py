"""Randomness is a function of (seed, round, client, purpose), never of what ran before.

So a resumed run needs no replay, clients may run in any order or place, and two methods that
share a seed see the same client samples and batches.
"""

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(seed, "batches", round, client)`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive(seed, *names)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
