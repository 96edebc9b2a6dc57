"""A record's own response in the prompt of a teacher, for soft targets (`fedsdr.training.soft`)."""

from dataclasses import replace

from fedsdr.data.example import Example, Reference
from fedsdr.data.records import Record
from fedsdr.generation.sampling import Job


def with_reference(example: Example, record: Record, job: Job, context: int, most: int) -> Example:
    """The example with its reference: the request to rewrite the record, as a prompt.

    job: that request (`fedsdr.distillation.teacher.rewriting_job`). context: tokens that the model
    can read. most: tokens of an example to learn from. The example is as it was where its response
    calls functions, or where request and response, or rewrite, are longer than the context.
    """
    if record.calls or len(job.prompt) + max(job.limit, len(example.response)) > context:
        return example
    limit = min(job.limit, most - len(example.prompt))
    return replace(example, reference=Reference(tuple(job.prompt), limit, record))
