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
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any, Self, cast

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError, SlimError
from slimrl.machine.processes import Guard, die_with_the_parent
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.custom import rewards_digest
from slimrl.rewards.scoring import Sampled, Unscored, assemble, outcomes_of, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from slimrl.terms import Checker

GRADES = ""
"""Stands for the task's own verdicts where a reward's name is expected."""
READY = "ready"
POLL_SECONDS = 0.1
"""How often a worker that is silent is looked at; one that ends is mostly seen at once, by its pipe."""
BUILT_IN_SECONDS = 600.0
"""For what is built in, on a group."""
START_SECONDS = 120.0
"""For Python, and whatever the files of the user's rewards load."""
DRAIN_SECONDS = 1.0
OUTPUT_BYTES = 1 << 16
"""Of what rewards print, shown in all."""
GIB = 2**30


class Scorer:
    """Scores groups as `slimrl.rewards.scoring.score` does, in any number of processes: equal groups, whatever their number.

    Args:
        task: its problems are not handed to workers, which need no more than form, checker and instruction.
        rewards: what is paid, as loaded from `config`; called in this process where there are no workers.
        config: from which each worker loads the same rewards, custom functions from their files.
        max_new_tokens: token budget of a completion.
        workers: processes; 0 scores in this one, inside of `submit`.
        show: gets what rewards print, a little of it.

    Workers start at once and load beside what the caller does next. A function of the user's that takes longer than
    `rewards.deadline` for a group, or ends its process, is killed with all it started and replaced: the group is unscorable,
    or an error where strict. None outlives this process, however it ends, unless it made a session of its own.
    Raises SettingsError where workers cannot rebuild the task.
    """

    def __init__(
        self,
        task: Task,
        rewards: Sequence[Reward],
        config: RewardsConfig,
        *,
        max_new_tokens: int,
        workers: int = 0,
        show: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._task, self._rewards = task, rewards
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._workers: list[_Worker] = []
        self._guard: Guard | None = None
        if workers:
            recipe = _recipe(task, config, max_new_tokens)
            try:
                self._guard = Guard()
            except OSError as error:
                raise SettingsError(_no_start(error)) from None
            output = _Output(show)
            self._workers = [_Worker(recipe, task, rewards, self._jobs, self._guard, output) for _ in range(workers)]

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
            future.set_result(score(Sampled(problem, completions, texts, step, strict), self._rewards, self._task))
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
        if self._guard is not None:
            self._guard.close()

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
    checker: Checker
    instruction: str
    rewards: RewardsConfig
    max_new_tokens: int
    files: str
    """SHA-256 of the user's files: a worker that is started later must find the same."""

    @property
    def theirs(self) -> frozenset[str]:
        """Names of the user's own functions."""
        return frozenset(spec.rpartition(":")[2] for spec in self.rewards.custom)


def _recipe(task: Task, config: RewardsConfig, max_new_tokens: int) -> _Recipe:
    if STYLES.get(task.style.name) is not task.style or type(task.grader) is not Grader:
        raise SettingsError("rewards.workers needs a style and a checker of SlimRL's own; set rewards.workers=0")
    return _Recipe(
        task.style.name, task.grader.checker, task.instruction, config, max_new_tokens, rewards_digest(config)
    )


class _Worker:
    """A thread that hands jobs to a process of its own, and starts it again when it has ended."""

    def __init__(
        self,
        recipe: _Recipe,
        task: Task,
        rewards: Sequence[Reward],
        jobs: queue.SimpleQueue[_Job | None],
        guard: Guard,
        output: _Output,
    ) -> None:
        self.restarts = 0
        self._recipe, self._task, self._rewards, self._jobs = recipe, task, rewards, jobs
        self._guard, self._output = guard, output
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
        """The process, ready for a request; one that ended is replaced."""
        if self._process is not None and self._process.ended:
            self._drop(self._process)
        if self._process is None:
            try:
                # by this thread, with which the kernel lets it die, see die_with_the_parent
                self._process = _Process(self._recipe, self._folder, self._path, self._guard, self._output)
            except OSError as error:
                raise SettingsError(_no_start(error)) from None
        return self._process

    def _drop(self, process: _Process) -> str:
        """Forget a process that ended, and say how; its id may soon be another's, which must not be killed."""
        self._process, self.restarts = None, self.restarts + 1
        return process.end()

    def _group(self, job: _Job) -> Group:
        """Ask for the verdicts and each reward in turn; what ends the process costs that reward's outcome and no other."""
        names = [GRADES, *(reward.name for reward in self._rewards)]
        found: dict[str, list[Any]] = {}
        while missing := [name for name in names if name not in found]:
            process = self._running()
            if self._stopped:  # looked at after the process is in its place, so `stop` cannot miss it
                raise CancelledError
            try:
                process.begin(job, missing)
                for name in missing:
                    found[name] = process.outcomes(name, self._deadline(name))
            except (EOFError, OSError, TimeoutError) as error:
                culprit = next((name for name in missing if name not in found), GRADES)
                how = self._drop(process)
                said = str(error) if isinstance(error, _LateError) else f"ended its worker by {how}"
                found[culprit] = self._lost(job, culprit, said)
        correct = found.pop(GRADES)
        # the caller's own records, of which the worker saw what rewards see
        sampled = Sampled(job.problem, job.completions, job.texts, job.step, job.strict)
        return assemble(sampled, self._rewards, correct, found)

    def _deadline(self, name: str) -> float:
        """What is built in bounds its own work; it shares a process with what the user's functions may have left running."""
        return self._recipe.rewards.deadline if name in self._recipe.theirs else BUILT_IN_SECONDS

    def _lost(self, job: _Job, name: str, reason: str) -> list[Any]:
        """The outcomes of what ended its process, or was ended with it."""
        if self._stopped:
            raise CancelledError
        if name == GRADES:  # no reward was at work, so whoever killed the worker meant nothing by it
            return [self._task.grade(text, job.problem.answer).strict for text in job.texts]
        return [Unscored(reason)] * len(job.texts)


class _LateError(TimeoutError):
    """A reward missed its deadline."""


class _Output:
    """Passes on what rewards print: visible, and not much of it."""

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show, self._left, self._lock = show, OUTPUT_BYTES, threading.Lock()

    def drain(self, pipe: IO[bytes]) -> None:
        """Read until nobody writes any more."""
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                with self._lock:
                    if not self._left:
                        continue
                    kept, self._left = data[: self._left], max(0, self._left - len(data))
                    self._show(kept.decode("utf-8", "replace"))
                    if not self._left:
                        self._show("\n(what reward functions print from here on is not shown)\n")


class _Process:
    """A worker's process and the pipe to it. Raises OSError where it cannot be started."""

    def __init__(self, recipe: _Recipe, folder: str, path: list[str], guard: Guard, output: _Output) -> None:
        self._guard, self._greeting = guard, cast(object, None)
        self._connection, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            code = f"import sys; sys.path[:] = {path}; from slimrl.rewards.workers import serve; serve({descriptor})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[descriptor],
                process_group=0,  # out of reach of Ctrl-C, and ended together with all it starts
                cwd=folder,
            )
        guard.watch(self._process.pid)
        self._drain = threading.Thread(target=output.drain, args=[self._process.stdout], daemon=True)
        self._drain.start()
        with contextlib.suppress(OSError):  # one that ended already is found by `begin`
            self._connection.send(recipe)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def begin(self, job: _Job, names: Sequence[str]) -> None:
        """Ask for the outcomes of these, in turn; raises what kept the worker from loading, or EOFError or OSError."""
        if self._greeting is None:
            try:
                self._greeting = self._receive(START_SECONDS)
            except TimeoutError:
                self._greeting = SettingsError(
                    f"the files of rewards.custom take longer than {START_SECONDS:g} s to load; mend what they do on the way"
                )
        if isinstance(self._greeting, Exception):
            raise self._greeting
        tokens = [completion.token_ids for completion in job.completions]
        self._connection.send((job.problem, tokens, job.texts, names))

    def outcomes(self, name: str, deadline: float) -> list[Any]:
        """The reply on `name`. Raises _LateError, EOFError or OSError where the worker is too slow, ended, or out of step."""
        try:
            answered, reply = self._receive(deadline)
        except TimeoutError:
            raise _LateError(f"took longer than rewards.deadline={deadline:g} s") from None
        if answered != name:
            raise EOFError
        if isinstance(reply, Exception):
            raise reply
        return cast(list[Any], reply)

    def _receive(self, deadline: float) -> Any:
        end = time.monotonic() + deadline
        while not self._connection.poll(max(0.0, min(POLL_SECONDS, end - time.monotonic()))):
            # a child that a reward left behind may keep the pipe open
            if self.ended and not self._connection.poll():
                raise EOFError
            if time.monotonic() >= end:
                raise TimeoutError
        return self._connection.recv()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> str:
        """Kill it and what it started; how it ended, in words."""
        self.kill()
        code = self._process.wait()
        self._drain.join(
            DRAIN_SECONDS
        )  # what was printed last is shown; a pipe that somebody holds open is not waited for
        self._guard.forget(self._process.pid)
        self._connection.close()
        if code == -signal.SIGKILL:
            return "signal 9 (as when memory runs out)"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"


def worker_count(config: RewardsConfig) -> int:
    """As the settings say; `auto` is half of the cores, at most 4, where code of the user's is paid."""
    if config.workers != "auto":
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // 2)) if config.custom_paid else 0


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
        connection.send(_portable(error))
        threading.Event().wait()
    connection.send(READY)
    own = os.getpid()
    while True:
        problem, tokens, texts, names = ForkingPickler.loads(requests.get())
        completions = [Completion((), ids, (), "stop") for ids in tokens]  # rewards see nothing else of them
        for name in names:
            reply: object
            try:
                if name == GRADES:
                    reply = [task.grade(text, problem.answer).strict for text in texts]
                else:
                    reply = outcomes_of(rewards[name], Sampled(problem, completions, texts, step=0), task)
            except Exception as error:
                reply = _portable(error)
            if os.getpid() != own:  # a child that a reward forked and that came back from it: only one may answer
                os._exit(0)
            connection.send((name, reply))


def _load(recipe: _Recipe) -> tuple[Task, dict[str, Reward]]:
    """The task without its problems, which come one by one, and its rewards by name."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        # of data, not of addresses: libraries for GPUs reserve far more of those than they fill
        limit = int(recipe.rewards.memory * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    grader = Grader(recipe.checker)
    task = Task("worker", (), (), (), STYLES[recipe.style], grader, recipe.instruction, {})
    rewards = load_rewards(recipe.rewards, task, max_new_tokens=recipe.max_new_tokens)
    if rewards_digest(recipe.rewards) != recipe.files:
        raise SettingsError(
            "a file of rewards.custom changed while the run went on; bring it back, or start another run"
        )
    return task, {reward.name: reward for reward in rewards}


def _no_start(error: OSError) -> str:
    return f"a reward worker cannot be started ({error.strerror or error}); lower rewards.workers"


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
