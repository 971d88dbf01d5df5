"""Groups scored while generation runs: in worker processes, or in this process if there are none."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from slimrl.config.rewards import RewardsConfig, is_programs
from slimrl.errors import SettingsError
from slimrl.machine.processes import Guard
from slimrl.machine.threads import cores
from slimrl.machine.worker import LOAD_SECONDS, Answer, LoadTimeoutError, Worker
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.asynchronous import Awaiting, await_all, late
from slimrl.rewards.calls import Call, Sampled, arguments, is_asynchronous
from slimrl.rewards.custom import rewards_digest
from slimrl.rewards.judge import Judge
from slimrl.rewards.outcomes import Outcome, Scored, Unscored
from slimrl.rewards.scoring import asked, assemble
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from slimrl.terms import Checker

GRADES = ""  # stands for the task's own verdicts where a reward's name is expected
BUILT_IN_SECONDS = 600.0  # deadline of a built-in reward for a group
GRACE_SECONDS = 2.0  # for a worker to end asynchronous functions that are late before it is killed
OUTPUT_BYTES = 1 << 16  # shown of what rewards print, in all
GIB = 2**30


class Scorer:
    """Scores groups as `slimrl.rewards.scoring.score` does, in any number of processes: equal groups, whatever their number.

    Args:
        task: workers get its form, checker and instruction, and none of its problems.
        rewards: the rewards of `config`, called in this process if there are no workers.
        config: each worker loads the same rewards from it, custom functions from their files; judges, and functions of the
            program, are asked from this process.
        max_new_tokens: token budget of a completion.
        workers: number of processes; 0 scores in this process, within `submit`.
        show: called with what rewards print, up to OUTPUT_BYTES of it.

    Workers start at once and load while the caller continues. A worker in which a function of the user's takes longer than
    `rewards.deadline` for a group (times `Sampled.patience`) is killed with all it started. A worker that ended is replaced,
    and its group is unscorable, or an error if it is strict. No worker outlives this process, and of what rewards start only a
    process with a session of its own does. Raises SettingsError if workers cannot rebuild the task.
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
        self._judges = [(reward, reward.function) for reward in rewards if isinstance(reward.function, Judge)]
        own = {spec.rpartition(":")[2] for spec in config.of_the_program}
        self._own = [reward for reward in rewards if reward.name in own]
        """Functions of the program."""
        self._deadline = config.deadline
        self._awaiting = Awaiting()
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
            loaded = {spec: custom for spec, custom in config.custom.items() if not is_programs(spec)}
            theirs = config.model_copy(update={"judge": {}, "custom": loaded})
            load = partial(_load, *form, theirs, max_new_tokens, rewards_digest(theirs))
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
        judged = {
            reward.name: judge.ask(arguments(reward, sampled, self._task))
            for reward, judge in self._judges
            if reward.name not in sampled.skip
        }
        own = self._here(asked(self._own, sampled), sampled, self._deadline)
        if self._threads:
            job = _Job(Future(), sampled, judged, own)
            self._jobs.put(job)
            return job.future
        others = [reward for reward in _unjudged(asked(self._rewards, sampled)) if reward.name not in own]
        job = _Job(Future(), sampled, judged, {**own, **self._here(others, sampled, None)})
        try:
            _deliver(
                job, self._rewards, [self._task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
            )
        except Exception as error:
            job.future.set_exception(error)
        return job.future

    def _here(self, rewards: Sequence[Reward], sampled: Sampled, seconds: float | None) -> dict[str, Future[Scored]]:
        """The results of rewards in this process by name: plain functions are called now, asynchronous ones are awaited
        while this process goes on, for `seconds` each.
        """
        calls = [Call(reward, sampled, self._task) for reward in rewards]
        later = [call for call in calls if is_asynchronous(call.reward.function)]
        found: dict[str, Future[Scored]] = {call.reward.name: Future() for call in calls if call not in later}
        for call in calls:
            if call not in later:
                found[call.reward.name].set_result(call.scored())
        return {**found, **self._awaiting.start(later, seconds, sampled.patience)}

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
        for _, judge in self._judges:
            judge.close()
        self._awaiting.close()
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unjudged(rewards: Sequence[Reward]) -> list[Reward]:
    return [reward for reward in rewards if not isinstance(reward.function, Judge)]


class _Request(NamedTuple):
    """A worker is to score the completions of a problem by the rewards of these names."""

    problem: Problem
    tokens: Sequence[tuple[int, ...]]
    texts: Sequence[str]
    step: int
    steps: int
    seed: int
    names: Sequence[str]
    alone: bool
    """Asynchronous functions are not awaited together."""
    patience: int


class _Running(NamedTuple):
    """A worker's word that these rewards, or GRADES, run from now on."""

    names: Sequence[str]
    asynchronous: bool = False
    """They run together, and the worker itself ends those that are late, unless they block it."""


class _Job(NamedTuple):
    future: Future[Group]
    sampled: Sampled
    judged: Mapping[str, Sequence[Future[Outcome]]]
    """By the judge's name, an outcome of each completion."""
    here: Mapping[str, Future[Scored]]
    """By name, the result of each function that is called in this process."""


def _deliver(
    job: _Job, rewards: Sequence[Reward], correct: Sequence[bool], found: Mapping[str, Scored] = MappingProxyType({})
) -> None:
    """Assemble the group of what workers `found`, now or as soon as judges and functions of this process have answered too."""

    def assembled() -> None:
        try:
            judged = {name: Scored([future.result() for future in futures]) for name, futures in job.judged.items()}
            here = {name: future.result() for name, future in job.here.items()}
            job.future.set_result(assemble(job.sampled, rewards, correct, {**found, **judged, **here}))
        except BaseException as error:  # of any kind, or the job would wait for ever
            job.future.set_exception(error)

    _when_done([*chain(*job.judged.values()), *job.here.values()], assembled)


def _when_done(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` when all are done: at once, or from the thread that ends the last of them."""
    waiting = next((future for future in futures if not future.done()), None)
    if waiting is None:
        then()
    else:
        waiting.add_done_callback(lambda _: _when_done(futures, then))


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
                    _deliver(job, self._rewards, *self._found(job.sampled, {*job.here}))
                except BaseException as error:  # of any kind, or the job would wait for ever
                    job.future.set_exception(error)
        self.worker.end()

    def _start_worker(self) -> None:
        """By this thread, since on Linux the process ends with the thread that starts it."""
        with _refused():
            self.worker.start()

    def _found(self, sampled: Sampled, known: set[str]) -> tuple[list[bool], dict[str, Scored]]:
        """The verdicts, and the result of each reward that is not `known`; what ends the process costs one reward's outcome.

        The worker says which rewards run before it runs them: one after another, and the asynchronous ones together. Where it
        ends while several run, each of these is asked again alone.
        """
        names = [reward.name for reward in _unjudged(asked(self._rewards, sampled)) if reward.name not in known]
        names.insert(0, GRADES)
        found: dict[str, Any] = {}
        tokens = [completion.token_ids for completion in sampled.completions]
        alone = False
        while missing := [name for name in names if name not in found]:
            self._start_worker()
            if self._stopped:  # read after the process is in its place, so `stop` cannot miss it
                raise CancelledError
            running = _Running(missing[:1])
            try:
                when = sampled.step, sampled.steps, sampled.seed
                request = _Request(sampled.problem, tokens, sampled.texts, *when, missing, alone, sampled.patience)
                self.worker.ask(request)
                while not found.keys() >= {*missing}:
                    reply = self.worker.reply(self._deadline(running, sampled.patience))
                    if isinstance(reply, _Running):
                        running = reply
                    else:
                        name, result = reply
                        found[name] = result
            except LoadTimeoutError:
                raise SettingsError(
                    f"the files of rewards.custom take longer than {LOAD_SECONDS:g} s to load; make them load faster"
                ) from None
            except (EOFError, OSError) as error:
                guilty = [name for name in running.names if name not in found]
                how = self.worker.end()
                if self._stopped:
                    raise CancelledError from None
                if len(guilty) == 1:
                    found[guilty[0]] = self._lost(sampled, guilty[0], error, how)
                alone = alone or len(guilty) > 1
        return found.pop(GRADES), found

    def _deadline(self, running: "_Running", patience: int) -> float:
        """Built-in rewards bound their own work, but share the process with all that the user's functions have left running."""
        if not self._custom.issuperset(running.names):
            return BUILT_IN_SECONDS
        return self._config.deadline * patience + (GRACE_SECONDS if running.asynchronous else 0.0)

    def _lost(self, sampled: Sampled, name: str, error: Exception, how: str) -> Any:
        """Stands for the result that the process which ended, as `how` says, did not give."""
        if name == GRADES:  # no reward was running, so the kill was not meant for one
            return [self._task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
        limit = (self._config.deadline, sampled.patience) if name in self._custom else (BUILT_IN_SECONDS,)
        unscored = Unscored(late(*limit) if isinstance(error, TimeoutError) else f"ended its worker by {how}")
        return Scored([unscored] * len(sampled.texts))


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
    """Worker processes that the settings ask for; `auto` is half of the cores, at most 4, where they can load a reward."""
    if config.workers != "auto":
        return config.workers
    return max(1, min(4, cores() // 2)) if len(config.custom) > len(config.of_the_program) else 0


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
    later = {name for name, reward in rewards.items() if is_asynchronous(reward.function)}

    def answer(request: _Request) -> Iterator[object]:
        completions = [Completion((), ids, (), "stop") for ids in request.tokens]  # rewards see nothing else of them
        sampled = Sampled(
            request.problem, completions, request.texts, step=request.step, steps=request.steps, seed=request.seed
        )
        for name in request.names:
            if name not in later:
                yield _Running([name])
            if name == GRADES:
                yield name, [task.grade(text, request.problem.answer).strict for text in request.texts]
            elif name not in later:
                yield name, Call(rewards[name], sampled, task).scored()
        together = [name for name in request.names if name in later]
        for names in ([name] for name in together) if request.alone else [together] if together else []:
            yield _Running(names, asynchronous=True)
            yield from await_all(
                [Call(rewards[name], sampled, task) for name in names], config.deadline, request.patience
            )

    return answer


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Raises SettingsError if the system refuses to start a process."""
    try:
        yield
    except OSError as error:
        sentence = f"a reward worker cannot be started ({error.strerror or error}); lower rewards.workers"
        raise SettingsError(sentence) from None
