"""The texts of a cell's clients, before and after rewriting."""

from experiments.plan import Cell
from experiments.results import Results
from fedsdr.core import files
from fedsdr.core.layout import CLIENTS_FOLDER, REWRITES_FILE
from fedsdr.workflows.prepare import prepare_run

Texts = dict[str, list[str]]  # client -> its responses


def raw(cell: Cell, seed: int) -> Texts:
    clients = prepare_run(cell.recipe(seed)).clients
    return {client.name: [record.response for record in client.train] for client in clients}


def rewritten(results: Results, cell: Cell, seed: int) -> Texts:
    folders = sorted((results.folder(cell, seed) / CLIENTS_FOLDER).iterdir())
    return {
        folder.name: [row["text"] for row in files.read_json_lines(folder / REWRITES_FILE)]
        for folder in folders
    }
