"""Groups scored while generation goes on: in worker processes, or in this one where there are none.

As in tasks/symbolic.py a worker is a plain child process that is asked one thing at a time. concurrent.futures' pool of
processes would not do: one worker that dies fails every group that waits, a parent that is killed leaves the workers
behind, and multiprocessing imports the main script again, with its torch, in each of them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Literal, Self

from slimrl.config import RewardsConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.processes import die_with_the_parent
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.rewards import Reward, load_rewards, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES

Row = tuple[bool, Mapping[str, float], float, str]
"""What a worker answers for one completion: a rollout's correct, scores, reward and unscorable."""

POLL_SECONDS = 0.1
"""How often a worker that is silent is looked at; one that ends is mostly seen at once, by its pipe."""


class Scorer:
    """Scores groups as `slimrl.rewards.score` does, in any number of processes: equal groups, whatever their number.

    Args:
        task: its problems are not handed to workers, which need no more than form, checker and instruction.
        rewards: what is paid, as loaded from `config`; used in this process.
        config: from which each worker loads the same rewards, custom functions from their files.
        max_new_tokens: token budget of a completion.
        workers: processes; 0 scores in this one, inside of `submit`.

    Workers start at once and load beside what the caller does next. One that ends (a reward called os._exit, memory ran
    out) is replaced, and its group is unscorable, or an error where strict. None outlives this process.
    Raises SettingsError where workers cannot rebuild the task.
    """

    def __init__(
        self, task: Task, rewards: Sequence[Reward], config: RewardsConfig, *, max_new_tokens: int, workers: int = 0
    ) -> None:
        self._task, self._rewards = task, rewards
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._workers: list[_Worker] = []
        if workers:
            recipe = _recipe(task, config, max_new_tokens)
            self._workers = [_Worker(recipe, task, self._jobs) for _ in range(workers)]

    @property
    def restarts(self) -> int:
        """How many workers ended while they were wanted; each is replaced when the next group needs it."""
        return sum(worker.restarts for worker in self._workers)

    def submit(
        self,
        problem: Problem,
        completions: Sequence[Completion],
        texts: Sequence[str],
        *,
        step: int,
        strict: bool = False,
    ) -> Future[Group]:
        """The group, now or later: `result()` waits for it, or raises what `score` raises.

        With `strict`, that is SettingsError also where the worker ended.
        """
        if self._closed:
            raise RuntimeError("the scorer is closed")
        future: Future[Group] = Future()
        if self._workers:
            self._jobs.put(_Job(future, problem, tuple(completions), tuple(texts), step, strict))
            return future
        try:
            future.set_result(score(problem, completions, texts, self._rewards, self._task, step=step, strict=strict))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End the workers and whatever they started; groups that are still waited for are cancelled."""
        self._closed = True
        for worker in self._workers:
            worker.stop()
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job.future.cancel()
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.thread.join()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Job:
    future: Future[Group]
    problem: Problem
    completions: tuple[Completion, ...]
    texts: tuple[str, ...]
    step: int
    strict: bool


@dataclass(frozen=True)
class _Recipe:
    """What a worker makes its task and rewards from."""

    style: str
    checker: Literal["numeric", "symbolic"]
    instruction: str
    rewards: RewardsConfig
    max_new_tokens: int


def _recipe(task: Task, config: RewardsConfig, max_new_tokens: int) -> _Recipe:
    if STYLES.get(task.style.name) is not task.style or type(task.grader) is not Grader:
        raise SettingsError("rewards.workers needs a style and a checker of SlimRL's own; set rewards.workers=0")
    return _Recipe(task.style.name, task.grader.checker, task.instruction, config, max_new_tokens)


class _Worker:
    """A thread that hands jobs to a process of its own, and starts it again when it has ended."""

    def __init__(self, recipe: _Recipe, task: Task, jobs: queue.SimpleQueue[_Job | None]) -> None:
        self.restarts = 0
        self._recipe, self._task, self._jobs = recipe, task, jobs
        # a custom function finds in a worker what it finds here, also in one that is started later
        self._folder, self._path = os.getcwd(), [str(entry) for entry in sys.path]
        self._process: _Process | None = None
        self._stopped = False
        # a daemon: a program that ends without closing the scorer does not wait for a reward that never returns
        self.thread = threading.Thread(target=self._work, name="reward worker", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the process, from any thread; the job it has fails."""
        self._stopped = True
        if process := self._process:  # read once: the other thread may drop it
            process.kill()

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # said to the first job, which tries again
            self._running()
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(self._group(job))
                except BaseException as error:  # whoever waits must hear of it, whatever it is
                    job.future.set_exception(error)
        if self._process is not None:
            self._process.end()

    def _running(self) -> _Process:
        if self._process is not None and self._process.ended:
            self._drop(self._process)
        if self._process is None:
            try:
                # by this thread, with which the kernel lets it die, see _die_with_the_parent
                self._process = _Process(self._recipe, self._folder, self._path)
            except OSError as error:
                reason = error.strerror or error
                raise SettingsError(f"a reward worker cannot be started ({reason}); lower rewards.workers") from None
        return self._process

    def _drop(self, process: _Process) -> str:
        """Forget a process that ended, and say how; its id may soon be another's, which must not be killed."""
        self._process, self.restarts = None, self.restarts + 1
        return process.end()

    def _group(self, job: _Job) -> Group:
        process = self._running()
        if self._stopped:  # looked at after the process is in its place, so `stop` cannot miss it
            raise CancelledError
        tokens = [completion.token_ids for completion in job.completions]
        try:
            rows = process.ask((job.problem, tokens, job.texts, job.strict))
        except (EOFError, OSError):
            return self._lost(job, self._drop(process))
        # the caller's own records, of which the worker saw what rewards see
        rollouts = (
            Rollout(job.problem, completion, text, *row)
            for completion, text, row in zip(job.completions, job.texts, rows, strict=True)
        )
        return Group(tuple(rollouts), job.step)

    def _lost(self, job: _Job, how: str) -> Group:
        """The group of a process that ended: unscorable, but graded."""
        if self._stopped:
            raise CancelledError
        if job.strict:
            raise SettingsError(
                f"a reward worker ended by {how} on problem {job.problem.id}; mend the function or remove it from rewards"
            )
        group = score(job.problem, job.completions, job.texts, (), self._task, step=job.step)
        reason = f"reward worker ended by {how}"
        return replace(group, rollouts=tuple(replace(rollout, unscorable=reason) for rollout in group.rollouts))


class _Process:
    """A worker's process and the pipe to it. Raises OSError where it cannot be started."""

    def __init__(self, recipe: _Recipe, folder: str, path: list[str]) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            code = f"import sys; sys.path[:] = {path}; from slimrl.rewards.workers import serve; serve({descriptor})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints is no data
                pass_fds=[descriptor],
                process_group=0,  # out of reach of Ctrl-C, and ended together with all it starts
                cwd=folder,
            )
        with contextlib.suppress(OSError):  # one that ended already is found by `ask`
            self._connection.send(recipe)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: object) -> list[Row]:
        """The reply. Raises the error that the worker replied, and EOFError or OSError where the worker ended."""
        self._connection.send(request)
        while not self._connection.poll(POLL_SECONDS):
            # a child that a reward left behind may keep the pipe open
            if self.ended and not self._connection.poll():
                raise EOFError
        reply: list[Row] | Exception = self._connection.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> str:
        """Kill it and what it started; how it ended, in words."""
        self.kill()
        code = self._process.wait()
        self._connection.close()
        if code == -signal.SIGKILL:
            return "signal 9 (as when memory runs out)"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"


def serve(descriptor: int) -> None:
    """The worker's own main: a recipe, then requests, come from the pipe until it closes."""
    _leave_stopping_to_the_parent()
    die_with_the_parent()
    sys.stdout = sys.stderr  # which is written line by line, so that nothing is lost with the process
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                requests.put(connection.recv_bytes())
        finally:
            os._exit(0)  # the parent is gone, perhaps in the middle of a reward that never returns

    threading.Thread(target=listen, daemon=True).start()
    try:
        task, rewards = _load(ForkingPickler.loads(requests.get()))
    except Exception as error:
        failure = _portable(error)
        while requests.get():
            connection.send(failure)
    while True:
        try:
            reply: list[Row] | Exception = _rows(ForkingPickler.loads(requests.get()), task, rewards)
        except Exception as error:
            reply = _portable(error)
        connection.send(reply)


def _load(recipe: _Recipe) -> tuple[Task, tuple[Reward, ...]]:
    """The task without its problems, which come one by one, and its rewards."""
    grader = Grader(recipe.checker)
    task = Task("worker", (), (), (), STYLES[recipe.style], grader, recipe.instruction, {})
    return task, load_rewards(recipe.rewards, task, max_new_tokens=recipe.max_new_tokens)


def _rows(
    request: tuple[Problem, list[tuple[int, ...]], tuple[str, ...], bool], task: Task, rewards: Sequence[Reward]
) -> list[Row]:
    problem, tokens, texts, strict = request
    completions = [Completion((), ids, (), "stop") for ids in tokens]  # rewards see nothing else of them
    group = score(problem, completions, texts, rewards, task, step=0, strict=strict)
    return [(r.correct, r.scores, r.reward, r.unscorable) for r in group.rollouts]


def _portable(error: Exception) -> Exception:
    """As it is where a user is meant to read it; else, it is a fault of ours, with the traceback that is lost on the way."""
    if isinstance(error, SlimError):
        return error
    return RuntimeError("in a reward worker:\n" + "".join(traceback.format_exception(error)))


def _leave_stopping_to_the_parent() -> None:
    """Schedulers send SIGTERM to every process of a job; the parent decides what still has to be scored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that a reward runs would inherit
    # a reward that forks may stop its children as ever
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
