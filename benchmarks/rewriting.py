"""Rewriting: new tokens a second, against transformers' `generate` in static batches.

    python benchmarks/rewriting.py [--quick] [--only fp32,bf16,lab] [--batches 4] [--rows 16]

Prompts, limits and lengths are those of real pairs (`lengths.py`), in tokens of four characters,
with the default prompt and limits of `[distill]`. A model with random weights does not stop where
a real one would, so both contenders are told where each row ends: ours by the job's limit,
`generate` by a stopping criterion. `generate` gets its prompts in the order of the data, as a plain
loop over records has them, and sorted by length, so that it pads little; what it loses then is
what its rows wait for the longest of their batch. The lab's model ends its texts itself, and the
contenders' texts are compared.
"""

import math
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from fedsdr.core.progress import silent_reporter
from fedsdr.distillation.teacher import rewriting_job
from fedsdr.estimate.tokens import CHARACTERS
from fedsdr.generation.sampling import Job
from fedsdr.generation.table import GENERATORS
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.distill import Distill
from fedsdr.workflows.prepare import base_of, prepare_run
from lengths import Lengths, records, source
from measure import Row, arguments, compare, save
from shapes import random_model

RECORDS = 2000  # of the client whose batches are rewritten
TEMPLATE = 12  # tokens of a chat template around a prompt
LAB = Path(__file__).parents[1] / "recipes" / "lab.toml"
SORTED = "generate, sorted"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ends(StoppingCriteria):
    """Each row ends after so many tokens."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.steps = torch.tensor(lengths), 0

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.steps += 1
        return (self.steps >= self.lengths).to(input_ids.device)


def jobs_of(many: Sequence[Lengths], vocabulary: int) -> list[Job]:
    """Random prompts of real lengths, the shortest first; a job's limit is the length that its
    rewrite had."""
    draw, options = torch.Generator().manual_seed(0), Distill()
    frame = len(options.prompt.format(instruction="", response=""))
    jobs: list[Job] = []
    for each in many:
        asked = TEMPLATE + math.ceil((frame + each.instruction + each.response) / CHARACTERS)
        reference = math.ceil(each.response / CHARACTERS) + 1
        limit = max(options.min_tokens, math.ceil(options.max_ratio * reference))
        length = min(limit, math.ceil(each.rewrite / CHARACTERS) + 1)
        jobs.append(Job(torch.randint(3, vocabulary, (asked,), generator=draw).tolist(), length))
    return sorted(jobs, key=lambda job: len(job.prompt))


def batches_of(jobs: Sequence[Job], rows: int, count: int) -> list[Job]:
    """`count` of the static batches that sorted jobs make, from evenly spaced places (batches of
    few jobs would differ more in length than those of a whole client do), in random order."""
    starts = [(2 * k + 1) * len(jobs) // (2 * count) for k in range(count)]
    chosen = [job for start in starts for job in jobs[start : start + rows]]
    return random.Random(0).sample(chosen, len(chosen))


@torch.no_grad()
def static(
    model: Any, jobs: Sequence[Job], rows: int, stop: int | None = None, by_length: bool = True
) -> list[list[int]]:
    """transformers' `generate`, batch by batch; rows end at their limit, or at `stop`."""
    order = list(range(len(jobs)))
    if by_length:
        order.sort(key=lambda i: len(jobs[i].prompt))
    done: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        batch = [jobs[i] for i in order[start : start + rows]]
        longest = max(len(job.prompt) for job in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(batch):
            ids[row, longest - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[row, longest - len(job.prompt) :] = 1
        out = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
            max_new_tokens=max(job.limit for job in batch), pad_token_id=0, eos_token_id=stop,
            stopping_criteria=StoppingCriteriaList([Ends([job.limit for job in batch])]),
        )  # fmt: skip
        for i, job, row in zip(order[start:], batch, out[:, longest:].tolist(), strict=False):
            row = row[: job.limit]
            done[i] = row[: row.index(stop) + 1] if stop in row else row
    return [done[i] for i in range(len(jobs))]


def speed(
    name: str,
    model: Any,
    jobs: Sequence[Job],
    rows: int,
    runs: int,
    stop: int | None = None,
    generators: Sequence[str] = ("fedsdr",),
) -> list[Row]:
    """`generate` and our generators on the same jobs, greedily."""

    def counted(texts: list[list[int]]) -> float:
        return sum(map(len, texts))

    def own(generator: str) -> Callable[[], float]:
        return lambda: counted(GENERATORS[generator](model, jobs, never, 0.0, rows))

    never = -1 if stop is None else stop
    contenders = {
        "generate": lambda: counted(static(model, jobs, rows, stop, by_length=False)),
        SORTED: lambda: counted(static(model, jobs, rows, stop)),
        **{f"fedsdr, generator {each!r}": own(each) for each in generators},
    }
    first = [Job(jobs[0].prompt, 2)]
    static(model, first, rows, stop)
    for each in generators:
        GENERATORS[each](model, first, never, 0.0, rows)
    device = str(model.device)
    return compare(name, contenders, "tokens", "generate", runs, device, warm=False, also=SORTED)


def lab(quick: bool, runs: int) -> list[Row]:
    """The lab's base model on its clients' rewriting requests, as many rows as its recipe says."""
    recipe = load_recipe(LAB)
    setting = prepare_run(recipe)
    base = base_of(recipe, silent_reporter())
    found = [record for client in setting.clients for record in client.train]
    jobs = [rewriting_job(base.chat, record, recipe.distill, 0, 0) for record in found]
    stop, rows = base.chat.end_of_turn, recipe.distill.batch_size
    if quick:
        jobs, rows = jobs[:64], 16
    wanted = static(base.model, jobs, rows, stop)
    same = GENERATORS["fedsdr"](base.model, jobs, stop, 0.0, rows) == wanted
    print("the same texts" if same else "other texts", file=sys.stderr)
    return speed("the lab's model, float32", base.model, jobs, rows, runs, stop)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", default="fp32,bf16,lab")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rows", type=int, default=Distill().batch_size)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    batches, runs = (1, 1) if given.quick else (given.batches, given.runs)
    rows: list[Row] = []
    for name in given.only.split(","):
        if name == "lab":
            rows += lab(given.quick, runs)
        else:
            shape = "tiny" if given.quick else "SmolLM2-135M"
            model = random_model(shape, DTYPES[name])
            jobs = jobs_of(records(RECORDS), model.config.vocab_size)
            jobs = batches_of(jobs, given.rows, batches)
            rows += speed(
                f"{shape}, {DTYPES[name]}".replace("torch.", ""), model, jobs, given.rows, runs
            )
    save("rewriting", {"speed": rows}, quick=given.quick, lengths=source())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
