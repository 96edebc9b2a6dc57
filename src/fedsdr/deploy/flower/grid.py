"""Flower as the line from the server to its clients: a ServerApp's grid."""

from collections.abc import Collection, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedsdr.deploy.flower.records import KIND, pack_bytes, unpack_bytes
from fedsdr.deploy.protocol.messages import printable_text
from fedsdr.deploy.server.admission import Reply


class FlowerLink:
    """A `fedsdr.deploy.server.admission.Link` over a ServerApp's grid."""

    def __init__(self, grid: Grid, ttl: float) -> None:
        """ttl: seconds that a message and its answer are valid."""
        self.grid, self.ttl = grid, ttl

    def nodes(self) -> Sequence[int]:
        return list(self.grid.get_node_ids())

    def send(self, node: int, data: bytes) -> str:
        message = Message(pack_bytes(data), dst_node_id=node, message_type=KIND, ttl=self.ttl)
        [id] = self.grid.push_messages([message])
        return id

    def receive(self, ids: Collection[str]) -> Sequence[Reply]:
        if not ids:
            return []
        return [_reply(message) for message in self.grid.pull_messages(ids)]


def _reply(message: Message) -> Reply:
    id = message.metadata.reply_to_message_id
    if message.has_error():
        reason = printable_text(str(message.error.reason))
        return Reply(id, b"", f"{reason} (Flower's code {message.error.code})")
    try:
        return Reply(id, unpack_bytes(message.content))
    except ValueError as error:
        return Reply(id, b"", str(error))
