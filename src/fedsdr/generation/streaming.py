"""Generation token by token, for interactive use; the KV cache is kept from turn to turn."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from fedsdr.generation.batched import caches_rightly
from fedsdr.generation.sampling import Stop, choose_tokens, stop_tokens
from fedsdr.model.trials import passes_trial, plain_logits


class TokenStream:
    """A growing sequence: the cached prefix of a prompt is not computed again.

    Valid for one model; make a new one when the adapters in it change.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._forget()

    def _forget(self) -> None:
        self._seen: list[int] = []  # the ids that the cache stands for
        self._cache = DynamicCache(config=self.model.config)

    @torch.no_grad()
    def generate(
        self,
        prompt: Sequence[int],
        limit: int,
        stop: Stop,
        temperature: float = 0.0,
        draw: torch.Generator | None = None,
    ) -> Iterator[int]:
        """At most `limit` new ids, as they come; a token of `stop` ends them and is not among them.

        temperature: 0 is greedy; above, `draw` must be given.
        """
        ends, known = stop_tokens(stop), len(self._seen)
        if self._seen != list(prompt[:known]) or known >= len(prompt):
            self._forget()
        rest = list(prompt[len(self._seen) :])
        for _ in range(limit):
            logits = self._advance(rest)
            uniform = torch.rand(1, dtype=torch.float64, generator=draw) if temperature else None
            token = int(choose_tokens(logits, temperature, uniform))
            if token in ends:
                return
            yield token
            rest = [token]

    def _advance(self, ids: list[int]) -> torch.Tensor:
        """Feed ids; the next token's logits (1, V), in float32 on the CPU."""
        if not passes_trial(self.model, caches_rightly):
            self._seen = self._seen + ids
            return plain_logits(self.model, self._seen)[-1:].float().cpu()
        device = self.model.device
        start = len(self._seen)
        positions = torch.arange(start, start + len(ids), device=device)[None]
        # An interrupted computation (Ctrl-C) leaves cache and ids inconsistent.
        seen, self._seen = self._seen, [-1]
        out = self.model(
            input_ids=torch.tensor([ids], device=device), position_ids=positions,
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self._seen = seen + ids
        logits: torch.Tensor = out.logits[:, -1].float().cpu()
        return logits
