"""MLflow: at MLFLOW_TRACKING_URI, or in `mlflow.db` and `mlartifacts/` beside the run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from slimrl.trackers import Numbers, Opened, Opening, Row
from slimrl.trackers.keys import columns_of

PARAMS_AT_ONCE = 100
METRICS_AT_ONCE = 1000
LONGEST_PARAM = 6000
"""Limits of MLflow's."""


class MLflow:
    """A run of MLflow, through its client: nothing of it is global."""

    _id: str

    def begin(self, opening: Opening) -> Opened:
        runs = Path(opening.folder).parent
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        local = "" if uri else f"sqlite:///{runs}/mlflow.db"
        where = f"mlflow ui --backend-store-uri {local}" if local else f"mlflow, {opening.name} in {opening.project}"
        artifacts = (runs / "mlartifacts").as_uri() if local else None
        with _alone(runs / ".mlflow.lock") if local else contextlib.nullcontext():
            self._client = MlflowClient(tracking_uri=uri or local)
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", opening.project), artifacts)
        if opening.known:
            self._id = opening.known
            self._client.update_run(self._id, status="RUNNING")
            return Opened(self._id, where)
        tags = {"slimrl.group": opening.group} if opening.group else {}
        run = self._client.create_run(experiment, run_name=opening.name, tags=tags)
        self._id = run.info.run_id
        params = [Param(_name(key), str(value)[:LONGEST_PARAM]) for key, value in opening.settings.items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + PARAMS_AT_ONCE])
        return Opened(self._id, where)

    def log(self, step: int, numbers: Numbers) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), float(value), now, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + METRICS_AT_ONCE])

    def table(self, step: int, rows: Sequence[Row]) -> None:
        names, data = columns_of(rows)
        columns = dict(zip(names, map(list, zip(*data, strict=True)), strict=True))
        self._client.log_table(self._id, columns, f"completions/step-{step:08d}.json")

    def summarize(self, step: int, numbers: Numbers) -> None:
        self.log(step, {f"summary/{name}": value for name, value in numbers.items()})

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _experiment(self, name: str, artifacts: str | None) -> str:
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another run made it meanwhile
            if (found := self._client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            raise


def _name(name: str) -> str:
    """A name of which every character is one that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes the tables of a new database: the runs of a study begin together."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
