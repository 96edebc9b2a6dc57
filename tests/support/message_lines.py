"""Lines from a server to clients in this process: as they should be, and as they can be."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client import relay
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.signing import UNSIGNED, SignatureVerifier, Signer
from fedsdr.deploy.server.admission import Reply
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import prepare_run

Answering = Callable[[bytes], bytes]


class Loopback:
    """Nodes are functions of this process; a message is delivered when its reply is looked for.

    `traffic` keeps every byte that was on the line, by node. `lost` decides what becomes of a
    reply: it may be changed, kept back (None), or turned into an error of the line (raise OSError).
    """

    def __init__(self, nodes: Mapping[int, Answering]) -> None:
        self.up = dict(nodes)
        self.traffic: dict[int, list[tuple[bytes, bytes]]] = {node: [] for node in nodes}
        self.lost: Callable[[int, bytes, bytes], bytes | None] = lambda node, asked, reply: reply
        self._sent: dict[str, tuple[int, bytes]] = {}
        self._number = itertools.count()

    def nodes(self) -> list[int]:
        return sorted(self.up)

    def send(self, node: int, data: bytes) -> str:
        id = f"message-{next(self._number)}"
        self._sent[id] = node, data
        return id

    def receive(self, ids: Collection[str]) -> list[Reply]:
        replies = []
        for id in [each for each in ids if each in self._sent]:
            node, data = self._sent.pop(id)
            try:
                answer = self.up[node](data)
                self.traffic[node].append((data, answer))
                reply = self.lost(node, data, answer)
            except (OSError, KeyError, ValueError) as error:
                replies.append(Reply(id, b"", f"node {node} failed: {error}"))
                continue
            if reply is not None:
                replies.append(Reply(id, reply))
        return replies


def client_sides(
    recipe: Path | Recipe,
    folder: Path,
    keys: Mapping[str, Signer] | None = None,
    server: SignatureVerifier = UNSIGNED,
) -> dict[str, ClientSide]:
    """The clients of a recipe: one model for all, and a folder for each."""
    recipe = load_recipe(recipe) if isinstance(recipe, Path) else recipe
    prepared = prepare_run(recipe)
    loaded = prepared.load(silent_reporter())
    return {
        client: ClientSide(
            loaded.of(client), prepared.methods, client, folder / client,
            ClientKeys((keys or {}).get(client, UNSIGNED), server), silent_reporter(),
        )
        for client in (each.name for each in loaded.clients)
    }  # fmt: skip


def loopback(sides: Mapping[str, Answering]) -> Loopback:
    return Loopback({100 + k: side for k, side in enumerate(sides.values())})


class Sockets:
    """A line to trainers on this machine, by their sockets: what Flower does, without Flower."""

    def __init__(self, paths: Sequence[Path], patience: float = 20.0) -> None:
        self.paths, self.patience = paths, patience
        self._pool = ThreadPoolExecutor(2 * len(paths))
        self._sent: dict[str, Future[bytes]] = {}
        self._number = itertools.count()

    def nodes(self) -> list[int]:
        return list(range(len(self.paths)))

    def send(self, node: int, data: bytes) -> str:
        id = f"message-{next(self._number)}"
        self._sent[id] = self._pool.submit(relay.ask_trainer, self.paths[node], data, self.patience)
        return id

    def receive(self, ids: Collection[str]) -> list[Reply]:
        done = [id for id in ids if id in self._sent and self._sent[id].done()]
        return [self._reply(id, self._sent.pop(id)) for id in done]

    def _reply(self, id: str, future: "Future[bytes]") -> Reply:
        try:
            return Reply(id, future.result())
        except relay.TrainerError as error:
            return Reply(id, b"", str(error))
