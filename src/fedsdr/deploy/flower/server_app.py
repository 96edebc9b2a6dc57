"""The Flower ServerApp: drives the round loop of the folder that its configuration names."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.deploy.flower.grid import FlowerLink
from fedsdr.deploy.sites.site import serve_folder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["folder"]))
    serve_folder(folder, lambda ttl: FlowerLink(grid, ttl))
