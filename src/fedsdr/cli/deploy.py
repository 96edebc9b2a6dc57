"""`fedsdr deploy ...` and `fedsdr status`: federations across organisations, on Flower."""

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.session import RecipePath, Sets, command_session
from fedsdr.core.layout import REPORT_FILE

app = typer.Typer(help="Run a recipe across organisations, on Flower.", no_args_is_help=True)

SiteFolder = Annotated[Path, typer.Argument(help="A folder that `fedsdr deploy init` has written.")]


@app.command("init")
def init_command(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="A new folder, with one for each site in it.")],
    host: Annotated[str, typer.Option(help="Name or address by which clients reach the server.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 8000,
    clients: Annotated[
        str, typer.Option(help="Comma-separated ids, where the recipe names no clients.")
    ] = "",
    set_: Sets = None,
) -> None:
    """Write a ready folder for one server and each client: keys, certificates, recipe, scripts."""
    from fedsdr.core.client_names import client_folder_name
    from fedsdr.deploy.sites import init as deploy
    from fedsdr.recipe.load import load_recipe

    with command_session("start anew in another --out"):
        given = [name.strip() for name in clients.split(",") if name.strip()]
        loaded = load_recipe(recipe, set_ or [])
        ids = deploy.init_federation(loaded, out, host, port, given)
    typer.echo(
        f"{out / 'server'}: start.sh, then `fedsdr deploy register` once, then `fedsdr deploy run`"
    )
    for client in ids:
        folder = out / client_folder_name(client)
        typer.echo(f"{folder}: for {client} alone; data in recipe.toml, then start.sh")


@app.command("register")
def register_command(folder: SiteFolder) -> None:
    """Tell the running SuperLink whose nodes may connect. Once."""
    from fedsdr.deploy.flower.submit import register_nodes as register_all

    with command_session():
        new = register_all(folder)
    typer.echo(f"registered: {', '.join(new) or 'all were already'}")


@app.command("trainer")
def trainer_command(
    folder: SiteFolder,
    socket: Annotated[
        Path | None, typer.Option(help="Where relays ask; FOLDER/trainer.sock by default.")
    ] = None,
    relay_user: Annotated[
        str, typer.Option(help="The user who runs the SuperNode, where that is another one.")
    ] = "",
) -> None:
    """Hold a client's model and data ready, and do what its server asks (start.sh does it)."""
    from fedsdr.deploy.sites.site import run_trainer

    with command_session("start it again, and it goes on") as reporter:
        run_trainer(folder, reporter, socket, relay_user)


@app.command("run")
def run_federation_command(
    folder: SiteFolder,
    attempts: Annotated[int, typer.Option(min=1, help="ServerApps that may die.")] = 5,
) -> None:
    """Submit the federation to its SuperLink, or go on with it, and wait for its end."""
    from fedsdr.deploy.flower.submit import run_federation
    from fedsdr.deploy.sites.folder import RUN

    with command_session("the federation goes on; ask by `fedsdr status`") as reporter:
        run_federation(folder, reporter, attempts)
    typer.echo(f"report: {folder / RUN / REPORT_FILE}")


@app.command("simulate")
def simulate_command(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="The folder; in an interrupted one it goes on.")],
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs for each worker.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs for each worker; 0.25: shared.")] = 0.0,
    set_: Sets = None,
) -> None:
    """Run a recipe on Flower's simulation runtime: Ray, several workers, machines, GPUs."""
    from fedsdr.deploy.flower.simulation import simulate_federation as simulate_all
    from fedsdr.deploy.sites.folder import RUN
    from fedsdr.recipe.load import load_recipe

    with command_session("go on with the same command") as reporter:
        simulate_all(load_recipe(recipe, set_ or []), out, cpus, gpus, reporter)
    typer.echo(f"report: {out / RUN / REPORT_FILE}")


def status_command(folder: SiteFolder) -> None:
    """What a federation has done: rounds, clients, bytes, the last error."""
    from fedsdr.deploy.sites.status import print_status

    with command_session():
        print_status(folder)
