"""Weights & Biases: a run for each method, files in RUN/wandb; WANDB_MODE=offline sends none."""

import os
import secrets
from collections.abc import Mapping

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.tracking.contract import Tracked

STATE_FILE = "wandb.json"  # in the method's folder: {"id", "logged"}, for a resumed one


class WandB:
    """Nothing of the machine is recorded: no console, code, host, git or system statistics."""

    def __init__(self, tracked: Tracked) -> None:
        _quiet()
        import wandb

        self._file = tracked.folder / STATE_FILE
        known = files.read_json(self._file) if self._file.exists() else {}
        self._id = str(known.get("id") or secrets.token_hex(8))
        self.logged = int(known.get("logged", -1))
        self._remember()
        private = wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self._run = wandb.init(
            project=tracked.project, group=tracked.run, name=tracked.title, id=self._id,
            resume="allow", dir=str(tracked.out), config=dict(tracked.parameters),
            settings=private,
        )  # fmt: skip

    def _remember(self) -> None:
        files.write_json(self._file, {"id": self._id, "logged": self.logged})

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=round)
        self.logged = round
        self._remember()

    def finish(self, final: Mapping[str, float] | None) -> None:
        self._run.summary.update({f"final/{name}": v for name, v in (final or {}).items()})
        self._run.finish(exit_code=1 if final is None else 0)


def check_wandb() -> None:
    """Raises `UserError` where W&B would ask for a login in the middle of a run."""
    _quiet()
    import wandb

    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False):
        raise UserError(
            "tracking.backends names wandb, which is not logged in: run `wandb login`, or set "
            "WANDB_MODE=offline to keep its files in the run folder (`wandb sync` sends them)"
        )


def _quiet() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
    os.environ.setdefault("WANDB_SILENT", "true")
