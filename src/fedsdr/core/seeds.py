"""Randomness is a function of (seed, round, client, purpose), never of what ran before.

So a resumed run needs no replay, clients may run in any order or place, and two methods that
share a seed see the same client samples and batches.

`torch.Generator` uses 32 bits of its seed, so its seed can be found by search from its draws. The
noise of differential privacy, which must stay secret, is drawn from a secret of 32 bytes instead.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

SECRET_BYTES: Final = 32


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(seed, "batches", round, client)`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(seed, *names)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def derive_secret(secret: bytes, *names: str | int) -> bytes:
    """A secret of 32 bytes for one purpose, which reveals nothing of those for other purposes;
    b"" for an empty secret."""
    if not secret:
        return b""
    text = "\x1f".join(map(str, names))
    return hashlib.blake2b(text.encode(), digest_size=SECRET_BYTES, key=secret).digest()


def secret_gaussian(secret: bytes, shape: Sequence[int]) -> torch.Tensor:
    """Independent draws of N(0, 1) as float64, as hard to guess as `secret`.

    SHAKE-256 of the secret gives 64 bits a draw, which Box and Muller (1958) make normal. 5 million
    draws take about half a second on one core.
    """
    count = math.prod(shape)
    words = np.frombuffer(hashlib.shake_256(secret).digest(16 * ((count + 1) // 2)), "<u8")
    uniform = ((words >> 12) + 0.5) * 2.0**-52  # exact, and never 0 or 1
    length, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    draws = np.concatenate([length * np.cos(angle), length * np.sin(angle)])
    return torch.from_numpy(draws[:count].reshape(tuple(shape)))
