"""Generation by transformers' continuous batching: paged keys and values, CUDA graphs, and flash
attention where it is installed.

The alternative to `fedsdr.generation.slots` for GPUs, of the same interface. Greedy texts are the
same. Sampled texts depend on their batch: all rows of a call draw from one seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import transformers
from transformers import GenerationConfig

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.generation.sampling import Job, Stop, stop_tokens

PAGE: Final = 256  # tokens of one row in a page of the cache, transformers' own default
SPARE: Final = 1.25  # of the pages that rows may need: with few left, no prompt is admitted
POLL: Final = 1.0  # seconds, after which the thread that generates is looked after


def check_paged() -> None:
    """Raise `UserError` where transformers is too old for it."""
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        found = transformers.__version__
        raise UserError(
            f'distill.generator = "transformers" needs a newer transformers than {found}, one with '
            'ContinuousBatchingConfig: upgrade it, or use the generator "fedsdr"'
        )


def generate_paged(
    model: Any,
    jobs: Sequence[Job],
    stop: Stop,
    temperature: float = 0.0,
    rows: int | None = None,
) -> list[list[int]]:
    """New token ids for each job, as `fedsdr.generation.batched.generate_batch` gives them.

    Raises `UserError` for a model that does not support it.
    """
    asked = {str(i): job for i, job in enumerate(jobs) if job.limit > 0}
    if not asked:
        return [[] for _ in jobs]
    rows = min(rows or len(asked), len(asked))
    ends = sorted(stop_tokens(stop))
    sampling, paging = _sampling(ends, temperature), _paging(list(asked.values()), rows)
    # transformers seeds the global generators.
    with torch.random.fork_rng(), _running(model, sampling, paging) as manager:
        written = dict(_serve(manager, asked, ends))
    return [written.get(str(i), []) for i in range(len(jobs))]


@contextmanager
def _running(model: Any, sampling: GenerationConfig, paging: Any) -> Iterator[Any]:
    """transformers' manager and the thread that generates."""
    graphs = model.device.type == "cuda"
    context = model.continuous_batching_context_manager(
        sampling, continuous_batching_config=paging, warmup=graphs
    )
    with ExitStack() as stack:
        try:
            manager = stack.enter_context(context)
        except ValueError as error:  # of models whose attention cannot be paged
            raise UserError(
                f'distill.generator = "transformers" cannot run {type(model).__name__}: {error}; '
                'use the generator "fedsdr"'
            ) from error
        yield manager


def _sampling(ends: list[int], temperature: float) -> GenerationConfig:
    """From the whole distribution: no top-k, no top-p."""
    if temperature == 0:
        return GenerationConfig(do_sample=False, eos_token_id=ends)
    return GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, eos_token_id=ends
    )


def _paging(jobs: Sequence[Job], rows: int) -> Any:
    """Pages for so many of the longest rows; without prefix sharing, as prompts differ early."""
    longest = max(len(job.prompt) + job.limit for job in jobs)
    return transformers.ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=math.ceil(SPARE * rows * math.ceil(longest / PAGE)) + 1,
        max_requests_per_batch=rows,
        allow_block_sharing=False,
        seed=seeds.derive_seed(jobs[0].seed, "paged", *(job.seed for job in jobs[1:])),
    )


def _serve(
    manager: Any, asked: Mapping[str, Job], ends: list[int]
) -> Iterator[tuple[str, list[int]]]:
    """(name, new ids) of each request, as they end."""
    for name, job in asked.items():
        manager.add_request(
            list(job.prompt), request_id=name, max_new_tokens=job.limit, eos_token_id=ends
        )
    left = len(asked)
    while left:
        result = manager.get_result(timeout=POLL)
        if result is None and manager.is_running():
            continue
        if result is None or result.error is not None:
            cause = manager.background_thread_status.fatal_error
            raise _stopped(cause or (result and result.error), left)
        if result.is_finished():
            left -= 1
            yield result.request_id, list(result.generated_tokens)


def _stopped(cause: Any, left: int) -> Exception:
    """cause: an exception, or transformers' description of one."""
    if isinstance(cause, MemoryError | torch.OutOfMemoryError):
        return UserError(f"too little memory to generate ({cause}): lower distill.batch_size")
    return RuntimeError(f"transformers stopped with {left} texts to go: {cause}")
