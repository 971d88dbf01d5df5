"""Weights & Biases. `WANDB_MODE=offline` writes into the run's folder, for `wandb sync`; other WANDB_ variables act as usual."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import wandb

from slimrl.trackers import Numbers, Opened, Opening, Row
from slimrl.trackers.keys import columns_of


class Wandb:
    """A run of W&B whose axis is `step`: W&B's own drops what comes a second time."""

    def begin(self, opening: Opening) -> Opened:
        # the child has no use for what W&B reads from a process: its output, its code, its command line
        settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", opening.project),
                group=opening.group or None,
                name=opening.name,
                dir=opening.folder,
                config=dict(opening.settings),
                id=opening.known or opening.id or None,
                resume="allow" if opening.known else None,
                settings=settings,
            )
        except wandb.errors.UsageError as error:
            if "api_key" in str(error) or "API key" in str(error):
                raise RuntimeError("no API key; run `wandb login`, or set WANDB_MODE=offline") from None
            raise
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return Opened(self._run.id, self._run.url or os.path.dirname(self._run.dir))

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log({**numbers, "step": step})

    def table(self, step: int, rows: Sequence[Row]) -> None:
        names, data = columns_of(rows)
        self._run.log({"completions": wandb.Table(columns=names, data=data), "step": step})

    def summarize(self, step: int, numbers: Numbers) -> None:
        self._run.summary.update({**numbers, "step": step})

    def close(self, finished: bool) -> None:
        # another exit code marks a run that is to be continued, and not one that is done
        self._run.finish(exit_code=0 if finished else 1)
