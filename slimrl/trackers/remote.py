"""The run's end of a tracker: a sink that never waits for it, and the child process in which the tracker lives."""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrl.machine.signals import NEVER, Stop
from slimrl.machine.worker import Answer, LoadTimeoutError, Worker
from slimrl.runs.files import as_json, write_text
from slimrl.runs.reader import read_json
from slimrl.terms import Tracker
from slimrl.text import without_secrets
from slimrl.trackers import Backend, Opened, Opening
from slimrl.trackers.keys import evaluation_numbers, sample_table, summary_numbers

if TYPE_CHECKING:
    from slimrl.config.sections import LogConfig
    from slimrl.results import Summaries

PACKAGES: dict[Tracker, str] = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow",
}
"""The Python package of each tracker."""
BEGIN_SECONDS = 180.0
"""For a log-in and a new run at a server that may be slow."""
CALL_SECONDS = 60.0
"""A call that takes longer hangs."""
CLOSE_SECONDS = 90.0
"""For all that waits at the end of a run, however that came, in all of its trackers together."""
SIGNAL_SECONDS = 5.0
"""The same after a signal, since the process may soon be killed."""
TAKES_AN_ID = ("wandb",)
"""Trackers that give a run the id that is made here."""
Request = tuple[str, tuple[Any, ...]]
"""A method of `Backend` and its arguments."""
IDS = "trackers.json"
"""File of a run's folder that holds each tracker's own id of the run."""
_writing_ids = threading.Lock()


class TrackerError(Exception):
    """A tracker is of no more use."""


@dataclass(frozen=True)
class Failed:
    """The reply of a child whose tracker raised an exception."""

    why: str


class Ending:
    """The end of a run's trackers: all are asked to close when the first is, and are waited for until the same moment."""

    def __init__(self, stop: Stop = NEVER) -> None:
        self._stop = stop
        self._trackers: list[RemoteTracker] = []
        self._until = 0.0
        self.seconds = 0.0
        """The time that the trackers were given."""

    def join(self, tracker: RemoteTracker) -> None:
        """Let a tracker end with the others."""
        self._trackers.append(tracker)

    def rest(self) -> float:
        """Seconds that are left until the end; they begin with the first call."""
        if not self.seconds:
            self.seconds = SIGNAL_SECONDS if self._stop.is_signalled else CLOSE_SECONDS
            self._until = time.monotonic() + self.seconds
            for tracker in self._trackers:
                tracker.ask_to_close()
        return max(0.0, self._until - time.monotonic())


def open_trackers(
    log: LogConfig, say: Callable[[str], object], note: Callable[[str], object], stop: Stop = NEVER
) -> tuple[RemoteTracker, ...]:
    """The sinks of `log.to`. A tracker that is not installed is named in a note and left out.

    `say` shows a line once a tracker has begun; it is called in another thread.
    """
    found, ending = [], Ending(stop)
    for name in log.to:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            extra = f"pip install 'slimrl[{name}]'"
            note(f"log.to={name}: the package is not installed ({extra}), so the run goes on without it")
        else:
            found.append(RemoteTracker(name, project=log.project, group=log.group, say=say, ending=ending))
    return tuple(found)


class RemoteTracker:
    """A `Sink` that hands everything to a tracker in a child process, in a thread of its own.

    Any call raises TrackerError, in one sentence, once the tracker has failed, taken too long, or ended.
    """

    def __init__(
        self,
        name: str,
        *,
        project: str,
        group: str,
        say: Callable[[str], object],
        load: Callable[[], Answer] | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.name = name
        self._ending = ending or Ending()
        self._ending.join(self)
        self._project, self._group, self._say = project, group, say
        self._worker = Worker(load or partial(load_backend, name), memory=sys.maxsize, output=lambda _: None)
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._failure = ""
        self._finished = False
        self._step = 0
        self._ids = Path()

    def begin(self, run: Path, settings: Mapping[str, object], step: int) -> None:
        self._ids, self._step = run / IDS, step
        known = str(read_json(self._ids).get(self.name, ""))
        told = {key: value for key, value in settings.items() if not key.startswith("log.")}
        folder = str(run.absolute())
        new = uuid.uuid4().hex[:16] if self.name in TAKES_AN_ID and not known else ""
        opening = Opening(folder, run.absolute().name, self._project, self._group, told, step, known, new)
        if new:
            self._store_id(new)
        self._thread.start()
        self._send("begin", opening)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._send("log", step, {"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._send("table", step, sample_table(step, rows))

    def evaluation(self, step: int, summaries: Summaries) -> None:
        self._send("log", step, {"step": step, **evaluation_numbers(summaries)})

    def finish(self, summary: Mapping[str, object]) -> None:
        self._finished = True
        self._send("summarize", self._step, summary_numbers(summary))

    def close(self) -> None:
        self._thread.join(self._ending.rest())
        if self._thread.is_alive():
            self._worker.kill()
            raise TrackerError(f"it did not take its last numbers within {self._ending.seconds:.0f} s")
        self._check()

    def ask_to_close(self) -> None:
        """Let the tracker end once it has taken what waits; `close` waits for that."""
        if not self._failure:
            self._requests.put(("close", (self._finished,)))
        self._requests.put(None)

    def _check(self) -> None:
        if self._failure:
            raise TrackerError(self._failure)

    def _send(self, method: str, *arguments: Any) -> None:
        self._check()
        self._requests.put((method, arguments))

    def _serve(self) -> None:
        """Hand over requests until there are no more, or one fails; the child ends with that."""
        try:
            self._worker.start()
            while (request := self._requests.get()) is not None:
                self._hand_over(*request)
        except (TimeoutError, LoadTimeoutError):
            self._failure = "it does not answer"
        except EOFError:
            self._failure = f"its process ended with {self._worker.end()}"
        except Exception as error:
            self._failure = without_secrets(str(error) or type(error).__name__)
        finally:
            self._worker.end()

    def _hand_over(self, method: str, arguments: tuple[Any, ...]) -> None:
        self._worker.ask((method, arguments))
        reply = self._worker.reply(BEGIN_SECONDS if method == "begin" else CALL_SECONDS)
        if isinstance(reply, Failed):
            raise TrackerError(reply.why)
        if isinstance(reply, Opened):
            self._store_id(reply.id)
            self._say(f"{self.name}: {reply.where}")

    def _store_id(self, name: str) -> None:
        with _writing_ids:
            write_text(self._ids, as_json({**read_json(self._ids), self.name: name}))


def load_backend(name: str) -> Answer:
    """Called in the child: the function that answers its requests."""
    return Served(partial(make_backend, name))


class Served:
    """A tracker in its child process, made at the first request: what its package cannot do on import is an answer, too."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._make = make
        self._backend: Backend | None = None

    def __call__(self, request: Request) -> Iterable[object]:
        """The one reply to a request: what the method of this name returns, or Failed."""
        method, arguments = request
        try:
            self._backend = self._backend or self._make()
            yield getattr(self._backend, method)(*arguments)
        except (Exception, SystemExit) as error:
            yield Failed(without_secrets(str(error) or type(error).__name__))


def make_backend(name: str) -> Backend:
    """The tracker of a name; its package is imported when it begins."""
    if name == "wandb":
        from slimrl.trackers.wandb import Wandb

        return Wandb()
    if name == "tensorboard":
        from slimrl.trackers.tensorboard import TensorBoard

        return TensorBoard()
    if name == "trackio":
        from slimrl.trackers.trackio import Trackio

        return Trackio()
    from slimrl.trackers.mlflow import MLflow

    return MLflow()
