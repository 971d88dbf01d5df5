"""Trackio: on this machine (`trackio show`), or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trackio

from slimrl.trackers import Numbers, Opened, Opening, Row
from slimrl.trackers.keys import columns_of


class Trackio:
    """A run of Trackio, which it knows by its name."""

    def begin(self, opening: Opening) -> Opened:
        self._run: Any = trackio.init(
            project=opening.project,
            name=opening.known or opening.name,
            group=opening.group or None,
            config=dict(opening.settings),
            resume="allow" if opening.known else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return Opened(self._run.name, f"trackio show --project {opening.project}")

    def log(self, step: int, numbers: Numbers) -> None:
        # `step` is a word of Trackio's own
        self._run.log({name: value for name, value in numbers.items() if name != "step"}, step=step)

    def table(self, step: int, rows: Sequence[Row]) -> None:
        names, data = columns_of(rows)
        self._run.log({"completions": trackio.Table(columns=names, data=data)}, step=step)

    def summarize(self, step: int, numbers: Numbers) -> None:
        self._run.log({f"summary/{name}": value for name, value in numbers.items()}, step=step)

    def close(self, finished: bool) -> None:  # noqa: ARG002
        self._run.finish()
