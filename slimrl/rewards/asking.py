"""The worker processes that score groups: the thread that asks one, and what the process answers."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, NamedTuple

from slimrl.config.rewards import RewardsConfig
from slimrl.config.sandbox import SandboxConfig
from slimrl.errors import SettingsError
from slimrl.machine.worker import LOAD_SECONDS, Answer, LoadTimeoutError, Worker
from slimrl.records import Completion
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.asynchronous import AT_ONCE, await_all, late
from slimrl.rewards.calls import Call, Sampled, is_asynchronous
from slimrl.rewards.custom import rewards_digest
from slimrl.rewards.jobs import Job, Jobs
from slimrl.rewards.judge import Judge
from slimrl.rewards.outcomes import Scored, Unscored
from slimrl.rewards.scoring import asked
from slimrl.tasks import Task
from slimrl.tasks.programs import grader_for
from slimrl.tasks.styles import STYLES
from slimrl.terms import Checker

GRADES = ""  # stands for the task's own verdicts where a reward's name is expected
BUILT_IN_SECONDS = 600.0  # deadline of a built-in reward for a group
GRACE_SECONDS = 2.0  # for a worker to end asynchronous functions that are late before it is killed

Place = tuple[int, str]  # of a result: the index of its group in a request, and the name of its reward


class _Request(NamedTuple):
    """A worker is to find the results of these places."""

    groups: Sequence[Sampled]
    places: Sequence[Place]
    alone: bool
    """Asynchronous functions are not awaited together."""


class _Running(NamedTuple):
    """A worker's word that what these places need runs from now on."""

    places: Sequence[Place]
    asynchronous: bool = False
    """They run together, and the worker itself ends those that are late, unless they block it."""


class ScoringThread(threading.Thread):
    """A thread that takes jobs and asks a worker process of its own.

    Where there are asynchronous functions, it takes all jobs that wait, up to AT_ONCE completions, so that these are awaited
    together; other functions would only be called in turn, in one process instead of several.
    """

    def __init__(
        self, worker: Worker, task: Task, rewards: Sequence[Reward], config: RewardsConfig, jobs: Jobs
    ) -> None:
        # a daemon: a program that ends without closing the scorer does not wait for a reward that never returns
        super().__init__(name="reward worker", daemon=True)
        self.worker = worker
        self._task, self._rewards, self._config, self._jobs = task, rewards, config, jobs
        self._custom = {spec.rpartition(":")[2] for spec in config.custom}
        self._stopped = False

    def stop(self) -> None:
        """End the process, from any thread; the jobs it has fail."""
        self._stopped = True
        self.worker.kill()

    def run(self) -> None:
        completions = 1
        with contextlib.suppress(Exception):  # raised again by the first job
            self._start_worker()
            self.worker.ask(None)
            completions = self.worker.reply(LOAD_SECONDS)
        while jobs := self._jobs.take(completions):
            self._score([job for job in jobs if job.future.set_running_or_notify_cancel()])
        self.worker.end()

    def _start_worker(self) -> None:
        """By this thread, since on Linux the process ends with the thread that starts it."""
        with refused():
            self.worker.start()

    def _score(self, jobs: Sequence[Job]) -> None:
        """Deliver each job as soon as its last result is there."""
        waiting = dict(enumerate(jobs))
        found: dict[int, dict[str, Any]] = {index: {} for index in waiting}
        names = {index: [GRADES, *self._names(job)] for index, job in waiting.items()}
        try:
            for (index, name), result in self._results([job.sampled for job in jobs], names):
                found[index][name] = result
                if len(found[index]) == len(names[index]):
                    waiting.pop(index).deliver(self._rewards, found[index].pop(GRADES), found[index])
        except BaseException as error:  # of any kind, or the jobs would wait for ever
            for job in waiting.values():
                job.future.set_exception(error)

    def _names(self, job: Job) -> list[str]:
        """Names of the rewards that the worker is asked for."""
        return [r.name for r in unjudged(asked(self._rewards, job.sampled)) if r.name not in job.here]

    def _results(self, groups: Sequence[Sampled], names: dict[int, list[str]]) -> Iterator[tuple[Place, Any]]:
        """The result of each place, verdicts or Scored, as it comes; what ends the process costs one reward's outcome of a group.

        The worker says what runs before it runs it: one place after another, and the asynchronous ones together. Where it
        ends while several run, each of these is asked again alone.
        """
        bare = [_bare(sampled) for sampled in groups]
        missing = [(index, name) for index in names for name in names[index]]
        alone = False
        while missing:
            self._start_worker()
            if self._stopped:  # read after the process is in its place, so `stop` cannot miss it
                raise CancelledError
            running = _Running(missing[:1])
            try:
                self.worker.ask(_Request(bare, missing, alone))
                while missing:
                    reply = self.worker.reply(self._deadline(running, groups))
                    if isinstance(reply, _Running):
                        running = reply
                    else:
                        missing.remove(reply[0])
                        yield reply
            except LoadTimeoutError:
                raise SettingsError(
                    f"the files of rewards.custom take longer than {LOAD_SECONDS:g} s to load; make them load faster"
                ) from None
            except (EOFError, OSError) as error:
                guilty = [place for place in running.places if place in missing]
                how = self.worker.end()
                if self._stopped:
                    raise CancelledError from None
                if len(guilty) == 1:
                    index, name = guilty[0]
                    missing.remove(guilty[0])
                    yield guilty[0], self._lost(groups[index], name, error, how)
                alone = alone or len(guilty) > 1

    def _deadline(self, running: _Running, groups: Sequence[Sampled]) -> float:
        """Built-in rewards bound their own work, but share the process with all that the user's functions have left running."""
        if not self._custom.issuperset(name for _, name in running.places):
            return BUILT_IN_SECONDS
        patience = max(groups[index].patience for index, _ in running.places)
        return self._config.deadline * patience + (GRACE_SECONDS if running.asynchronous else 0.0)

    def _lost(self, sampled: Sampled, name: str, error: Exception, how: str) -> Any:
        """Stands for the result that the process which ended, as `how` says, did not give."""
        if name == GRADES:  # no reward was running, so the kill was not meant for one
            return [self._task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
        limit = (self._config.deadline, sampled.patience) if name in self._custom else (BUILT_IN_SECONDS,)
        unscored = Unscored(late(*limit) if isinstance(error, TimeoutError) else f"ended its worker by {how}")
        return Scored([unscored] * len(sampled.texts))


def unjudged(rewards: Sequence[Reward]) -> list[Reward]:
    """The rewards without judges, which no worker asks."""
    return [reward for reward in rewards if not isinstance(reward.function, Judge)]


def _bare(sampled: Sampled) -> Sampled:
    """The sample with that of its completions which rewards see."""
    return replace(sampled, completions=[Completion((), c.token_ids, (), "stop") for c in sampled.completions])


class Form(NamedTuple):
    """The part of a task that a worker needs."""

    style: str
    checker: Checker
    instruction: str
    sandbox: SandboxConfig


def load_answer(form: Form, config: RewardsConfig, max_new_tokens: int, digest: str) -> Answer:
    """In a worker: load task and rewards; returns the function that gives the result of each place in a request, and, where
    there is none, the number of completions that a request may have.
    """
    # without problems, which come one by one
    grader = grader_for(form.checker, form.sandbox)
    task = Task("worker", (), (), (), STYLES[form.style], grader, form.instruction, {})
    loaded = load_rewards(config, task, max_new_tokens=max_new_tokens)
    if rewards_digest(config) != digest:
        raise SettingsError("a file of rewards.custom changed during the run; bring it back, or start another run")
    rewards = {reward.name: reward for reward in loaded}
    later = {name for name, reward in rewards.items() if is_asynchronous(reward.function)}

    def answer(request: _Request | None) -> Iterator[object]:
        if request is None:  # only here it is known what the functions are
            yield AT_ONCE if later else 1
            return
        together = [place for place in request.places if place[1] in later]
        for place in request.places:
            sampled = request.groups[place[0]]
            if place not in together:
                yield _Running([place])
                if place[1] == GRADES:
                    task.begin(sampled.texts, sampled.problem.answer)
                    yield place, [task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
                else:
                    yield place, Call(rewards[place[1]], sampled, task).scored()
        for places in ([place] for place in together) if request.alone else [together] if together else []:
            yield _Running(places, asynchronous=True)
            calls = {Call(rewards[name], request.groups[index], task): (index, name) for index, name in places}
            yield from ((calls[call], scored) for call, scored in await_all([*calls], config.deadline))

    return answer


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Raises SettingsError if the system refuses to start a process."""
    try:
        yield
    except OSError as error:
        sentence = f"a reward worker cannot be started ({error.strerror or error}); lower rewards.workers"
        raise SettingsError(sentence) from None
