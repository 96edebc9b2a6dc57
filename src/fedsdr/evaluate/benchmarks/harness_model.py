"""The model in memory as lm-evaluation-harness sees it. Imports lm-eval: import it late."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.huggingface import HFLM

from fedsdr.core.progress import Bar, Reporter
from fedsdr.data.records import Turn
from fedsdr.generation.batched import pads_left
from fedsdr.model.base import LoadedModel
from fedsdr.model.trials import passes_trial


@dataclass(frozen=True)
class HarnessOptions:
    """limit: at most so many questions of each subject, the first ones; None is all.
    chat: whether prompts go through the model's chat template, shots as turns.
    bos: whether the tokenizer's special tokens go before prompts; None: as the tokenizer does by
        itself, and with a chat template, which brings its own, none.
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
        bos = False if options.chat and options.bos is None else options.bos
        # lm-eval pads batches on the left too.
        batch = options.batch_size if passes_trial(base.model, pads_left) else 1
        super().__init__(
            pretrained=base.model,
            tokenizer=tokenizer,
            max_length=base.context,
            batch_size=batch,
            add_bos_token=bos,
        )
        self.chat, self.reporter, self.label = base.chat, reporter, ""
        self.cut: set[str] = set()

    @property
    def puts_bos(self) -> bool:
        """Whether plain prompts begin with the token that begins a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and bool(self.tok_encode("a")[:1] == [bos])

    def fits(self, context: str, continuations: Sequence[str], tokens: int) -> bool:
        """Whether a prompt leaves room for each continuation, or for `tokens` new tokens."""
        if not continuations:
            return bool(len(self.tok_encode(context)) <= self.max_length - tokens)
        pairs = [self._encode_pair(context, text) for text in continuations]
        # The last token is predicted and not read.
        return bool(max(len(a) + len(b) for a, b in pairs) <= self.max_length + 1)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The template that the model was trained with, as in `ChatFormat`."""
        if not add_generation_prompt:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        turns = tuple(Turn(each["role"], each["content"]) for each in chat_history)  # type: ignore[arg-type]
        return self.chat.prompt_text(turns)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        with self._bar(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        for (context, _), before, after in requests:
            if len(before) + len(after) > self.max_length + 1:
                self.cut.add(context)
        return super()._loglikelihood_tokens(requests, *args, **options)

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
