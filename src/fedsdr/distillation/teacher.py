"""The teacher of FedSD, and its request to rewrite one record.

arXiv 2605.18028, Sec. method: y~_i ~ f_teacher(. | c_i, x_i, y_i). The teacher is the broadcast
model of round 0, which is the base model; the request follows SDFT (arXiv 2402.13669).
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from fedsdr.core import seeds
from fedsdr.data.records import Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.data.thinking import split_thought
from fedsdr.generation.sampling import Contrast, Job
from fedsdr.recipe.sections.distill import Distill


@dataclass(frozen=True)
class Teacher:
    """The model that rewrites, frozen, with all streams off. identity: digest of all that it is."""

    model: Any
    chat: ChatFormat
    identity: str
    context: int  # tokens, prompt and rewrite together


def rewriting_prompt(chat: ChatFormat, record: Record, options: Distill) -> list[int]:
    """The prompt that asks for a rewrite, as token ids."""
    request = _request_text(chat, record, options)
    *before, last = record.prompt
    if last.role == "user":  # else it is the result of a tool, which the teacher needs
        turns = (*before, replace(last, text=request))
    else:
        turns = (*record.prompt, Turn("user", request))
    return chat.prompt_ids(turns, record.tools)


def _request_text(chat: ChatFormat, record: Record, options: Distill) -> str:
    answer = split_thought(record.response, chat.marks).answer
    places = {"{instruction}": record.instruction, "{response}": answer}
    # One pass, so that braces inside the client's texts are left alone.
    return re.sub("|".join(map(re.escape, places)), lambda m: places[m[0]], options.prompt)


def rewriting_job(
    chat: ChatFormat, record: Record, options: Distill, seed: int, attempt: int
) -> Job:
    """The request to rewrite one record: its prompt, its token limit, its seed, and where rewriting
    is contrastive the plain prompt, to which the reference is unknown."""
    request = _request_text(chat, record, options)
    reference = len(chat.response_ids(record.response))
    limit = max(options.min_tokens, math.ceil(options.max_ratio * reference))
    limit += options.thinking_tokens if chat.thinks else 0
    plain = chat.prompt_ids(record.prompt, record.tools) if options.contrast else ()
    return Job(
        rewriting_prompt(chat, record, options),
        limit,
        seeds.derive_seed(seed, "rewrite", request, attempt),
        Contrast(plain, options.contrast, options.contrast_floor) if options.contrast else None,
    )
