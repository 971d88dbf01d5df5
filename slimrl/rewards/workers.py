"""Groups scored while generation runs: in worker processes, or in this process if there are none."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple, Self

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.machine.processes import Guard
from slimrl.machine.threads import cores
from slimrl.machine.worker import LOAD_SECONDS, Answer, LoadTimeoutError, Worker
from slimrl.records import Completion, Group
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.custom import rewards_digest
from slimrl.rewards.scoring import Outcome, Sampled, Unscored, assemble, outcomes_of, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from slimrl.terms import Checker

GRADES = ""  # stands for the task's own verdicts where a reward's name is expected
BUILT_IN_SECONDS = 600.0  # deadline of a built-in reward for a group
OUTPUT_BYTES = 1 << 16  # shown of what rewards print, in all
GIB = 2**30


class Scorer:
    """Scores groups as `slimrl.rewards.scoring.score` does, in any number of processes: equal groups, whatever their number.

    Args:
        task: workers get its form, checker and instruction, and none of its problems.
        rewards: the rewards of `config`, called in this process if there are no workers.
        config: each worker loads the same rewards from it, custom functions from their files.
        max_new_tokens: token budget of a completion.
        workers: number of processes; 0 scores in this process, within `submit`.
        show: called with what rewards print, up to OUTPUT_BYTES of it.

    Workers start at once and load while the caller continues. A worker in which a function of the user's takes longer than
    `rewards.deadline` for a group is killed with all it started. A worker that ended is replaced, and its group is
    unscorable, or an error if it is strict. No worker outlives this process, and of what rewards start only a process with a
    session of its own does. Raises SettingsError if workers cannot rebuild the task.
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
        self._threads: list[_ScoringThread] = []
        self._guard: Guard | None = None
        if workers:
            if STYLES.get(task.style.name) is not task.style or type(task.grader) is not Grader:
                raise SettingsError(
                    "rewards.workers needs a style and a checker of SlimRL's own; set rewards.workers=0"
                )
            form = task.style.name, task.grader.checker, task.instruction
            # a worker that is started later must find the same files
            load = partial(_load, *form, config, max_new_tokens, rewards_digest(config))
            with _refused():
                self._guard = Guard()
            output, memory = _Output(show), int(config.memory * GIB)
            for _ in range(workers):
                worker = Worker(load, memory=memory, output=output.write, guard=self._guard)
                self._threads.append(_ScoringThread(worker, task, rewards, config, self._jobs))
            for thread in self._threads:
                thread.start()

    @property
    def restarts(self) -> int:
        """Number of workers that were replaced."""
        return sum(max(0, thread.worker.starts - 1) for thread in self._threads)

    def submit(self, sampled: Sampled) -> Future[Group]:
        """The scored group: `result()` waits for it, or raises as `score` does, and for a strict one also if the worker ended."""
        if self._closed:
            raise RuntimeError("the scorer is closed")
        future: Future[Group] = Future()
        if self._threads:
            self._jobs.put(_Job(future, sampled))
            return future
        try:
            future.set_result(score(sampled, self._rewards, self._task))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End the workers and whatever they started; groups that are not scored yet are cancelled."""
        self._closed = True
        for thread in self._threads:
            thread.stop()
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job.future.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Job(NamedTuple):
    future: Future[Group]
    sampled: Sampled


_Jobs = queue.SimpleQueue[_Job | None]  # None ends the thread that takes it


class _ScoringThread(threading.Thread):
    """A thread that takes jobs and asks a worker process of its own."""

    def __init__(
        self, worker: Worker, task: Task, rewards: Sequence[Reward], config: RewardsConfig, jobs: _Jobs
    ) -> None:
        # a daemon: a program that ends without closing the scorer does not wait for a reward that never returns
        super().__init__(name="reward worker", daemon=True)
        self.worker = worker
        self._task, self._rewards, self._config, self._jobs = task, rewards, config, jobs
        self._custom = {spec.rpartition(":")[2] for spec in config.custom}
        self._stopped = False

    def stop(self) -> None:
        """End the process, from any thread; the job it has fails."""
        self._stopped = True
        self.worker.kill()

    def run(self) -> None:
        with contextlib.suppress(Exception):  # raised again by the first job
            self._start_worker()
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(self._group(job.sampled))
                except BaseException as error:  # of any kind, or the job would wait for ever
                    job.future.set_exception(error)
        self.worker.end()

    def _start_worker(self) -> None:
        """By this thread, since on Linux the process ends with the thread that starts it."""
        with _refused():
            self.worker.start()

    def _group(self, sampled: Sampled) -> Group:
        """Ask for the verdicts and each reward in turn; what ends the process costs that reward's outcome and no other."""
        names = [GRADES, *(reward.name for reward in self._rewards)]
        outcomes: dict[str, list[Any]] = {}
        while missing := [name for name in names if name not in outcomes]:
            self._start_worker()
            if self._stopped:  # read after the process is in its place, so `stop` cannot miss it
                raise CancelledError
            try:
                tokens = [c.token_ids for c in sampled.completions]
                self.worker.ask((sampled.problem, tokens, sampled.texts, sampled.draw, missing))
                for name in missing:
                    answered, found = self.worker.reply(self._deadline(name))
                    if answered != name:
                        raise EOFError
                    outcomes[name] = list(found)
            except LoadTimeoutError:
                raise SettingsError(
                    f"the files of rewards.custom take longer than {LOAD_SECONDS:g} s to load; make them load faster"
                ) from None
            except (EOFError, OSError) as error:
                name = next(name for name in missing if name not in outcomes)
                outcomes[name] = self._lost(sampled, name, error)
        return assemble(sampled, self._rewards, outcomes.pop(GRADES), outcomes)

    def _deadline(self, name: str) -> float:
        """Built-in rewards bound their own work, but share the process with all that the user's functions have left running."""
        return self._config.deadline if name in self._custom else BUILT_IN_SECONDS

    def _lost(self, sampled: Sampled, name: str, error: Exception) -> list[Any]:
        """End the process that failed on `name`, and return the outcomes that stand for those it did not give."""
        how = self.worker.end()
        if self._stopped:
            raise CancelledError
        if name == GRADES:  # no reward was running, so the kill was not meant for one
            return [self._task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
        late = f"took longer than rewards.deadline={self._deadline(name):g} s"
        unscored = Unscored(late if isinstance(error, TimeoutError) else f"ended its worker by {how}")
        return [unscored] * len(sampled.texts)


class _Output:
    """Passes on what rewards print, up to OUTPUT_BYTES."""

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show, self._left, self._lock = show, OUTPUT_BYTES, threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            kept, self._left = data[: self._left], max(0, self._left - len(data))
            if kept:
                self._show(kept.decode("utf-8", "replace"))
            if kept and not self._left:
                self._show("\n(what reward functions print from here on is not shown)\n")


def worker_count(config: RewardsConfig) -> int:
    """Worker processes that the settings ask for; `auto` is half of the cores, at most 4, if custom rewards are paid."""
    if config.workers != "auto":
        return config.workers
    return max(1, min(4, cores() // 2)) if config.custom_paid else 0


def _load(
    style: str, checker: Checker, instruction: str, config: RewardsConfig, max_new_tokens: int, digest: str
) -> Answer:
    """In a worker: load task and rewards; returns the function that gives the outcomes of each name in turn."""
    # without problems, which come one by one
    task = Task("worker", (), (), (), STYLES[style], Grader(checker), instruction, {})
    loaded = load_rewards(config, task, max_new_tokens=max_new_tokens)
    if rewards_digest(config) != digest:
        raise SettingsError("a file of rewards.custom changed during the run; bring it back, or start another run")
    rewards = {reward.name: reward for reward in loaded}

    def answer(request: Any) -> Iterator[tuple[str, Sequence[Outcome]]]:
        problem, tokens, texts, (seed, step), names = request  # as _group asks
        completions = [Completion((), ids, (), "stop") for ids in tokens]  # rewards see nothing else of them
        for name in names:
            if name == GRADES:
                yield name, [task.grade(text, problem.answer).strict for text in texts]
            else:
                yield name, outcomes_of(rewards[name], Sampled(problem, completions, texts, step, seed=seed), task)

    return answer


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Raises SettingsError if the system refuses to start a process."""
    try:
        yield
    except OSError as error:
        sentence = f"a reward worker cannot be started ({error.strerror or error}); lower rewards.workers"
        raise SettingsError(sentence) from None
