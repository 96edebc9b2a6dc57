"""The Flower ClientApp: passes messages on, and cannot do anything else.

Deployed, to the trainer whose socket the node's configuration names. In a simulation, to a client
that lives in this process (`fedsdr.deploy.resident`), since many share a machine there.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsdr.deploy import relay
from fedsdr.deploy.flower import pack, unpack

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Errors become Flower's, which the server asks again after."""
    data = unpack(message.content)
    if "socket" in context.node_config:
        answer = relay.ask(Path(str(context.node_config["socket"])), data)
    else:
        from fedsdr.deploy.resident import client_at

        folder = Path(str(context.run_config["folder"]))
        answer = client_at(folder, int(context.node_config["partition-id"]))(data)
    return Message(pack(answer), reply_to=message)
