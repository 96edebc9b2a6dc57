"""The texts of a cell's clients, before and after rewriting."""

import json

from fedsdr.evidence.plan import Cell
from fedsdr.evidence.results import Results
from fedsdr.setting import prepare

Texts = dict[str, list[str]]  # client -> its responses


def raw(cell: Cell, seed: int) -> Texts:
    clients = prepare(cell.recipe(seed)).clients
    return {client.name: [record.response for record in client.train] for client in clients}


def rewritten(results: Results, cell: Cell, seed: int) -> Texts:
    folders = sorted((results.folder(cell, seed) / "clients").iterdir())
    files = {folder.name: folder / "rewrites.jsonl" for folder in folders}
    return {
        name: [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        for name, file in files.items()
    }
