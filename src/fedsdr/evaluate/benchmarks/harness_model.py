"""The model in memory as lm-evaluation-harness sees it. Imports lm-eval: import it late."""

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Bar, Reporter
from fedsdr.data.records import Turn
from fedsdr.evaluate.benchmarks.openings import (
    begins_with_bos,
    choose_opening,
    opened_ids,
    shortened_ids,
)
from fedsdr.generation.batched import pads_left
from fedsdr.generation.continuations import (
    ContinuationLikelihood,
    Continued,
    continuation_likelihoods,
    shares_prompts,
)
from fedsdr.generation.rows import pad_left
from fedsdr.model.base import LoadedModel
from fedsdr.model.trials import passes_trial

EncodedPair = tuple[list[int], list[int]]  # token ids of a prompt and of its continuation


@dataclass(frozen=True)
class HarnessOptions:
    """limit: at most so many questions of each subject, the first ones; None is all.
    chat: whether prompts go through the model's chat template, shots as turns.
    bos: whether prompts begin with the tokenizer's BOS token; None: as the tokenizer does by
        itself, and with a chat template as that does.
    batch_size: prompts at a time.
    """

    limit: int | None = None
    chat: bool = False
    bos: bool | None = None
    batch_size: int = 8


class StreamLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A loaded model with whatever streams are active: they act inside its linear layers."""

    def __init__(self, base: LoadedModel, options: HarnessOptions, reporter: Reporter) -> None:
        tokenizer = copy.deepcopy(base.chat.tokenizer)  # lm-eval sets its pad token
        tokenizer.chat_template = base.chat.template  # lm-eval renders unfinished answers itself
        self.chat, self.templated = base.chat, options.chat
        self.opening = choose_opening(base.chat, options.chat, options.bos)
        # lm-eval pads batches on the left too.
        batch = options.batch_size if passes_trial(base.model, pads_left) else 1
        super().__init__(
            pretrained=base.model,
            tokenizer=tokenizer,
            max_length=base.context,
            batch_size=batch,
            think_end_token=base.chat.thought_end,  # what is scored comes after it
        )
        self.reporter, self.label = reporter, ""
        self.cut: set[str] = set()
        self.begins_with_bos = begins_with_bos(base.chat, self.opening, options.chat)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids of a text; of one that begins a prompt with what opens it, once."""
        ids = self.chat.ids(string) if self.templated else self.chat.literal_ids(string)
        return ids if add_special_tokens is False else opened_ids(ids, self.opening)

    def tok_batch_encode(
        self, strings: Sequence[str], left_truncate_len: int | None = None, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, T) each, of prompts to be continued, padded on the left; longer ones
        lose their beginning, but for what opens them."""
        limit = left_truncate_len or self.max_length
        prompts = [shortened_ids(self.tok_encode(s), self.opening, limit) for s in strings]
        return pad_left(prompts, torch.device("cpu"))

    def fits(self, context: str, pairs: Sequence[EncodedPair], tokens: int) -> bool:
        """Whether a prompt leaves room for each continuation, with which it makes `pairs`, or,
        where there are none, for `tokens` new tokens."""
        if not pairs:
            return bool(len(self.tok_encode(context)) <= self.max_length - tokens)
        # The last token is predicted and not read.
        return bool(max(len(a) + len(b) for a, b in pairs) <= self.max_length + 1)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The template that the model was trained with, as in `ChatFormat`."""
        if not add_generation_prompt:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        turns = tuple(Turn(each["role"], each["content"]) for each in chat_history)  # type: ignore[arg-type]
        return self.chat.marked_prompt(turns)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        with self._bar(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        """(log-likelihood in nats, whether greedy) of each request's last ids after its first."""
        fitting = []
        for texts, before, after in requests:
            room = self.max_length + 1 - len(after)  # the last token is predicted and not read
            if room < 1:
                raise UserError(
                    f"{self.label}: a choice of {len(after)} tokens exceeds the model's context of "
                    f"{self.max_length}: leave the benchmark out"
                )
            if len(before) > room and texts is not None:
                self.cut.add(texts[0])
            fitting.append((texts, shortened_ids(before, self.opening, room), after))
        if not passes_trial(self.model, shares_prompts):
            return super()._loglikelihood_tokens(fitting, *args, **options)
        return self._by_prompt(fitting)

    def _by_prompt(self, requests: Any) -> list[ContinuationLikelihood]:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, before, _) in enumerate(requests):
            groups[tuple(before)].append(place)
        asked = [Continued(p, [requests[i][2] for i in places]) for p, places in groups.items()]
        # Like lengths together, the largest first, should memory end. Continuations count before
        # prompts, for there are more of them to be padded.
        asked.sort(key=lambda each: (max(map(len, each.continuations)), len(each.prompt)))
        asked.reverse()
        answers: dict[int, ContinuationLikelihood] = {}
        found = continuation_likelihoods(self.model, asked, self.batch_size)
        for each, likelihoods in zip(asked, found, strict=True):
            for place, likelihood in zip(groups[tuple(each.prompt)], likelihoods, strict=True):
                answers[place] = likelihood
                if requests[place][0] is not None:  # else a piece of a text that is scored whole
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], likelihood)
        return [answers[place] for place in range(len(requests))]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        for context, how in (request.args for request in requests):
            room = self.max_length - how.get("max_gen_toks", self.max_gen_toks)
            if len(self.tok_encode(context)) > room:
                self.cut.add(context)
        with self._bar(len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    @contextlib.contextmanager
    def _bar(self, requests: int) -> Iterator[None]:
        before = self.cache_hook
        with self.reporter.bar(self.label, requests, keep=False) as bar:
            self.set_cache_hook(_Ticks(bar))
            try:
                yield
            finally:
                self.set_cache_hook(before)


class _Ticks:
    """lm-eval passes every answered request to its cache hook; this one only counts them."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def add_partial(self, kind: str, request: object, answer: object) -> None:
        self.bar.advance()
