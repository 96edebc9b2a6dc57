"""MLflow: a run for each method, in the store of $MLFLOW_TRACKING_URI, else MLflow's own."""

import logging
import os
import re
import time
from collections.abc import Mapping

from fedsdr.core import files
from fedsdr.tracking.contract import Tracked

ID_FILE = "mlflow.json"  # in the method's folder: the id of its run, for a resumed one
MLFLOW_BATCH = 100  # of what the REST interface takes at a time


class MLflow:
    """Through the client, so that no global state of MLflow is touched."""

    def __init__(self, tracked: Tracked) -> None:
        _quiet()
        from mlflow import MlflowClient

        self._client = MlflowClient()
        file = tracked.folder / ID_FILE
        if file.exists():
            self._id = str(files.read_json(file))
            self._client.set_terminated(self._id, "RUNNING")
        else:
            self._id = self._begin(tracked)
            files.write_json(file, self._id)
        history = self._client.get_metric_history(self._id, "round")
        self.logged = max((metric.step for metric in history), default=-1)

    def _begin(self, tracked: Tracked) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(tracked.project)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(tracked.project)
        )
        tags = {"fedsdr.workflows.run": tracked.run, "fedsdr.method": tracked.method}
        run = self._client.create_run(experiment, tags=tags, run_name=tracked.title)
        params = [Param(name, str(value)) for name, value in tracked.parameters.items()]
        for start in range(0, len(params), MLFLOW_BATCH):
            self._client.log_batch(run.info.run_id, params=params[start : start + MLFLOW_BATCH])
        return str(run.info.run_id)

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        self._batch(metrics, round)
        self._batch({"round": round}, round)  # last: all of the round is there
        self.logged = round

    def finish(self, final: Mapping[str, float] | None) -> None:
        named = {f"final/{name}": value for name, value in (final or {}).items()}
        self._batch(named, max(self.logged, 0))
        self._client.set_terminated(self._id, "KILLED" if final is None else "FINISHED")

    def _batch(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(allowed_name(name), value, now, step) for name, value in metrics.items()]
        for start in range(0, len(rows), MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=rows[start : start + MLFLOW_BATCH])


def allowed_name(name: str) -> str:
    """MLflow's names are letters, digits and _ - . : / and spaces."""
    return re.sub(r"[^\w\-.:/ ]", "_", name)


def check_mlflow() -> None:
    """Nothing can be missing once MLflow is installed; silences it."""
    _quiet()


def _quiet() -> None:
    """No calls home, no lines about database tables."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
