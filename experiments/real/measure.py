"""What is asked of a finished cell on a pretrained model beyond its own metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from experiments.paired import compare_pairs
from fedsdr.core import files
from fedsdr.core.layout import REWRITES_FILE
from fedsdr.data.records import ClientData, Record
from fedsdr.distillation.answers import check_label, check_number
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.evasion import no_answer
from fedsdr.federation.loaded import LoadedRun
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.training.store import ClientStore

ANSWER_TOKENS: Final = 96  # the longest answer
ANSWER_ROWS: Final = 16  # of about one length, so that short answers wait for no long ones
GOLD: Final = (check_label, check_number)
NOTHING: Final = Rewrite("", finished=True)  # fails every check of `GOLD` that applies
Answer = tuple[str, Record, Rewrite]  # client, question, answer


def answer_scores(loaded: LoadedRun) -> dict[str, float]:
    """The model's greedy answers to each client's held-out questions.

    Of each client `accuracy/NAME` (labels and final numbers, where its records have such),
    `refusals/NAME` (both in percent) and `words/NAME`; `refusals` and `words` of all questions.
    """
    asked = [(client.name, record) for client in loaded.clients for record in client.held_out]
    texts = _greedy_answers(loaded, [record for _, record in asked])
    answers = [(name, record, text) for (name, record), text in zip(asked, texts, strict=True)]
    scores = _evasion(answers)
    for client in loaded.clients:
        mine = [each for each in answers if each[0] == client.name]
        named = _evasion(mine) | _accuracy(mine)
        scores |= {f"{metric}/{client.name}": value for metric, value in named.items()}
    return scores


def _evasion(answers: Sequence[Answer]) -> dict[str, float]:
    if not answers:
        return {}
    refused = sum(no_answer(record, text) is not None for _, record, text in answers)
    words = sum(len(text.text.split()) for *_, text in answers)
    return {"refusals": 100 * refused / len(answers), "words": words / len(answers)}


def _accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Of the questions that have a label or a number as gold answer; {} where none has."""
    right = [
        all(check(record, text) is None for check in checks)
        for _, record, text in answers
        if (checks := [check for check in GOLD if check(record, NOTHING)])
    ]
    return {"accuracy": 100 * sum(right) / len(right)} if right else {}


def _greedy_answers(loaded: LoadedRun, records: Sequence[Record]) -> list[Rewrite]:
    chat = loaded.base.chat
    jobs = [Job(chat.prompt_ids(record.prompt, record.tools), ANSWER_TOKENS) for record in records]
    written = generate_batch(loaded.base.model, jobs, chat.ends, rows=ANSWER_ROWS)
    return [Rewrite(chat.answer(ids).text, chat.is_finished(ids)) for ids in written]


def text_measures(clients: Iterable[ClientData], store: ClientStore) -> Mapping[str, Any]:
    """Every measure of `experiments.paired`, [before, after] rewriting, of all clients' texts."""
    raw, rewritten, groups = list[str](), list[str](), list[str]()
    for client in clients:
        rows = files.read_json_lines(store.client_folder(client.name) / REWRITES_FILE)
        raw += [record.response for record in client.train]
        rewritten += [row["text"] for row in rows]
        groups += [client.name] * len(rows)
    return {name: [a, b] for name, a, b in compare_pairs(raw, rewritten, groups).rows()}
