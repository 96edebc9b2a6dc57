"""How much memory a simulation takes, by the number of its clients: there is one base model.

    python benchmarks/memory.py [--quick]

The peak of a process that runs a round of FedSDR with so many clients on the five-domain recipe, so
that each keeps a private stream; they share five record lists, the five clients', since records are
not what is measured, and take a step a stage, since more take no more memory.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from measure import Row, arguments, peak, save
from rounds import FIVE, Federation

ONE_STEP = (
    "baselines=[]",
    "local.rectify_steps=1",
    "local.smooth_steps=1",
    "local.batch_size=4",
)


def memory(counts: Iterable[int]) -> list[Row]:
    """Peaks of processes of their own."""
    rows: list[Row] = []
    for count in counts:
        command = [sys.executable, __file__, "--clients", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"clients": count, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def held(recipe: Recipe, clients: int) -> dict[str, int]:
    """Of this process, after a round of so many clients: how many kept an S, and MiB at most."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(recipe, Path(folder), clients)
        federation.run()
        most, engine = round(peak()), federation.engine
        private = sum(bool(engine.state(client, 1).private) for client in engine.clients())
        lists = min(clients, len(federation.loaded.raw))
    return {"with an S": private, "record lists": lists, "peak MiB": most}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, help="print what a round of so many clients holds")
    given = parser.parse_args()
    if given.clients:
        print(json.dumps(held(load_recipe(FIVE, ONE_STEP), given.clients)))
        return
    save("memory", {"clients": memory((2, 4) if given.quick else (2, 20, 200))}, quick=given.quick)


if __name__ == "__main__":
    main()
