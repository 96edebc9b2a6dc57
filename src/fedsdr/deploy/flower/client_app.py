"""The Flower ClientApp: passes messages on, and cannot do anything else.

Deployed, to the trainer whose socket the node's configuration names. In a simulation, to a client
that lives in this process (`fedsdr.deploy.flower.resident`), since many share a machine there.
"""

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsdr.deploy.client import relay
from fedsdr.deploy.flower.records import pack_bytes, unpack_bytes

app = ClientApp()
log = logging.getLogger(__name__)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Errors become Flower's, which the server asks again after.

    Flower sends their text to the server, so it tells nothing of this machine; the log does.
    """
    data = unpack_bytes(message.content)
    if "socket" in context.node_config:
        try:
            answer = relay.ask_trainer(Path(str(context.node_config["socket"])), data)
        except relay.TrainerError as error:
            log.error("%s", error)
            raise relay.TrainerError("the trainer gave no answer, see this client's log") from None
    else:
        from fedsdr.deploy.flower.resident import client_at

        folder = Path(str(context.run_config["folder"]))
        answer = client_at(folder, int(context.node_config["partition-id"]))(data)
    return Message(pack_bytes(answer), reply_to=message)
