"""Continuous batching: a fixed number of rows, each refilled with the next job when it ends.

Keys and values lie in slots allocated once, one for each row, from position 0: no left padding, and
no copy of the cache at each step. Prompts, all but their last token, are prefilled in groups as
rows become free; their last tokens and all new tokens go through the common decoding step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fedsdr.generation.sampling import Job, Stop, choose_tokens, stop_tokens, uniform_draws
from fedsdr.model.trials import (
    STEPS,
    TRIAL_TEXTS,
    compute_precision,
    passes_trial,
    plain_logits,
    same_logits,
)

SLOT_GROUP: Final = 8  # of the rows, one part in so many is free before prompts are read


@dataclass
class CachePosition:
    """Where in the cache the next keys and values are written.

    rows: when prompts are read, the slot of each; None in a step, which has a token for every row.
    positions: in a step, (B,) where in its slot each row's token stands.
    length: of the longest slot in use.
    """

    capacity: int
    slots: int
    rows: Tensor | None = None
    positions: Tensor | None = None
    length: int = 0


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, capacity, width)."""

    def __init__(self, place: CachePosition) -> None:
        super().__init__()
        self.keys: Tensor | None
        self.values: Tensor | None
        self.place = place

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Store new keys and values; returns those to attend to: a prompt's, or all in use."""
        place = self.place
        if self.keys is None or self.values is None:
            self.keys, self.values = self._empty(key_states), self._empty(value_states)
            self.is_initialized = True
        if place.rows is not None:
            length = key_states.shape[2]
            self.keys[place.rows, :, :length] = key_states
            self.values[place.rows, :, :length] = value_states
            return key_states, value_states
        rows = torch.arange(len(self.keys), device=self.keys.device)
        self.keys[rows, :, place.positions] = key_states[:, :, 0]
        self.values[rows, :, place.positions] = value_states[:, :, 0]
        return self.keys[:, :, : place.length], self.values[:, :, : place.length]

    def _empty(self, like: Tensor) -> Tensor:
        # Zeros: what is masked out is multiplied all the same, and must be finite.
        _, heads, _, width = like.shape
        return like.new_zeros(self.place.slots, heads, self.place.capacity, width)

    def keep(self, rows: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_seq_length(self) -> int:
        """Nothing precedes a prompt; a step brings its own mask."""
        return 0


@dataclass
class SlotRow:
    """A job in its slot: the token to read next, its position, and what has been written."""

    job: int
    token: int
    position: int
    written: list[int] = field(default_factory=list)


def supports_slots(model: Any) -> bool:
    """Whether a model supports slots: all layers have full attention by torch's kernel with our
    mask, no other state is carried from step to step, and a trial agrees."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation == "sdpa"
        and bool(getattr(model, "_supports_attention_backend", False))
        and not getattr(model, "_is_stateful", False)
        and kinds == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and passes_trial(model, _grows_right)
    )


def _grows_right(model: Any) -> bool:
    jobs = [Job(text[:-STEPS], STEPS) for text in TRIAL_TEXTS]
    slots = Slots(model, jobs, stop=-1, temperature=0.0, rows=len(jobs))
    slots.admit({row: row for row in range(len(jobs))})
    for left in range(STEPS, 0, -1):
        wanted = torch.stack([plain_logits(model, text[:-left])[-1] for text in TRIAL_TEXTS])
        if not same_logits(slots.logits(), wanted, compute_precision(model)):
            return False
        for row, text in enumerate(TRIAL_TEXTS):
            slots.append(row, text[-left])
    return True


class Slots:
    """The running rows of a model. temperature: 0 is greedy."""

    def __init__(
        self, model: Any, jobs: Sequence[Job], stop: Stop, temperature: float, rows: int
    ) -> None:
        self.model, self.jobs, self.temperature = model, jobs, temperature
        self.stop = stop_tokens(stop)
        self.device = model.device
        capacity = max(len(job.prompt) + job.limit for job in jobs)
        self.place = CachePosition(capacity, rows)
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [SlotLayer(self.place) for _ in self.cache.layers]
        self.rows: list[SlotRow | None] = [None] * rows
        self.draws = torch.zeros(rows, max(job.limit for job in jobs), dtype=torch.float64)

    def run(self) -> list[list[int]]:
        """New ids of each job."""
        done: list[list[int]] = [[] for _ in self.jobs]
        # The longest first, so that the last to run are short; like prompts are read together.
        order = sorted(range(len(self.jobs)), key=lambda i: len(self.jobs[i].prompt))
        waiting = [i for i in order if self.jobs[i].limit > 0]
        group = max(1, len(self.rows) // SLOT_GROUP)
        while waiting or any(self.rows):
            free = [slot for slot, row in enumerate(self.rows) if row is None]
            if waiting and len(free) >= min(group, len(waiting)):
                self.admit({slot: waiting.pop() for slot in free[: len(waiting)]})
            elif not waiting and len(free) >= len(self.rows) / 2:
                self._shrink()
            for row in self._step():
                done[row.job] = row.written
        return done

    def admit(self, admitted: dict[int, int]) -> None:
        """Give slots to jobs and read their prompts, all but the last token."""
        for slot, i in admitted.items():
            job = self.jobs[i]
            self.rows[slot] = SlotRow(i, job.prompt[-1], len(job.prompt) - 1)
            if self.temperature > 0:
                self.draws[slot, : job.limit] = uniform_draws(job)
        heads = [self.jobs[i].prompt[:-1] for i in admitted.values()]
        longest = max(map(len, heads))
        if longest == 0:
            return
        # Filled up on the right, where causal attention does not look; what the filling leaves in
        # a slot is written over before it is attended to.
        ids = torch.zeros(len(heads), longest, dtype=torch.long)
        for row, head in enumerate(heads):
            ids[row, : len(head)] = torch.tensor(head, dtype=torch.long)
        self.place.rows = torch.tensor(list(admitted), device=self.device)
        self._forward(ids, torch.arange(longest)[None], None)
        self.place.rows = None

    def logits(self) -> Tensor:
        """Of each slot's next token, (B, V)."""
        rows = [row or SlotRow(-1, 0, 0) for row in self.rows]
        positions = torch.tensor([row.position for row in rows])
        self.place.positions = positions.to(self.device)
        self.place.length = int(positions.max()) + 1
        mask = torch.arange(self.place.length) <= positions[:, None]  # (B, T)
        tokens = torch.tensor([[row.token] for row in rows])
        return self._forward(tokens, positions[:, None], mask[:, None, None])[:, -1]

    def _step(self) -> list[SlotRow]:
        """One token for every row; returns those that ended, whose slots are free then."""
        logits = self.logits()
        draw = None
        if self.temperature > 0:
            written = torch.tensor([[len(row.written) if row else 0] for row in self.rows])
            draw = self.draws.gather(1, written)[:, 0].to(self.device)
        tokens = choose_tokens(logits.float(), self.temperature, draw).tolist()
        return [ended for slot, token in enumerate(tokens) if (ended := self.append(slot, token))]

    def append(self, slot: int, token: int) -> SlotRow | None:
        row = self.rows[slot]
        if row is None:
            return None
        row.written.append(token)
        row.token, row.position = token, row.position + 1
        if token not in self.stop and len(row.written) < self.jobs[row.job].limit:
            return None
        self.rows[slot] = None
        return row

    def _shrink(self) -> None:
        """Release the free slots when no job is waiting."""
        used = torch.tensor([slot for slot, row in enumerate(self.rows) if row is not None])
        self.rows = [row for row in self.rows if row is not None]
        self.draws = self.draws[used]
        for layer in self.cache.layers:
            layer.keep(used.to(self.device))

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        out = self.model(
            input_ids=ids.to(self.device),
            attention_mask=None if mask is None else mask.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits
        return logits
