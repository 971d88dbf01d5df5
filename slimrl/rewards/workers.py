"""Groups scored while generation runs: in worker processes, or in this process if there are none."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Self

from slimrl.config.rewards import RewardsConfig, is_programs
from slimrl.config.sandbox import SandboxConfig
from slimrl.errors import SettingsError
from slimrl.machine.processes import Guard
from slimrl.machine.threads import cores
from slimrl.machine.worker import GIB, Output, Worker
from slimrl.records import Group
from slimrl.rewards import Reward
from slimrl.rewards.asking import Form, ScoringThread, load_answer, refused, unjudged
from slimrl.rewards.asynchronous import Awaiting
from slimrl.rewards.calls import Call, Sampled, arguments, is_asynchronous
from slimrl.rewards.custom import rewards_digest
from slimrl.rewards.jobs import Job, Jobs
from slimrl.rewards.judge import Judge
from slimrl.rewards.outcomes import Scored
from slimrl.rewards.scoring import asked
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.programs import ProgramGrader
from slimrl.tasks.styles import STYLES


class Scorer:
    """Scores groups as `slimrl.rewards.scoring.score` does, in any number of processes: equal groups, whatever their number.

    Args:
        task: workers get its form, checker and instruction, and none of its problems.
        rewards: the rewards of `config`, called in this process if there are no workers.
        config: each worker loads the same rewards from it, custom functions from their files; judges, and functions of the
            program, are asked from this process.
        max_new_tokens: token budget of a completion.
        workers: number of processes; 0 scores in this process, within `submit`.
        show: called with what rewards print, as far as `Output` shows it.

    Workers start at once and load while the caller continues. A worker in which a function of the user's takes longer than
    `rewards.deadline` for a group (times `Sampled.patience`) is killed with all it started. A worker that ended is replaced,
    and its group is unscorable, or an error if it is strict. No worker outlives this process, and of what rewards start only a
    process with a session of its own may, if its environment is its own too or this process was killed. Raises SettingsError if
    workers cannot rebuild the task.
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
        self._jobs = Jobs()
        self._closed = False
        # programs take their time, during which this process goes on sampling
        self._later = ThreadPoolExecutor(1, "grading") if task.runs_programs else None
        self._threads: list[ScoringThread] = []
        self._guard: Guard | None = None
        if workers:
            if STYLES.get(task.style.name) is not task.style or type(task.grader) not in (Grader, ProgramGrader):
                raise SettingsError(
                    "rewards.workers needs a style and a checker of SlimRL's own; set rewards.workers=0"
                )
            grader = task.grader
            sandbox = grader.sandbox.config if isinstance(grader, ProgramGrader) else SandboxConfig()
            form = Form(task.style.name, grader.checker, task.instruction, sandbox)
            # a worker that is started later must find the same files
            loaded = {spec: custom for spec, custom in config.custom.items() if not is_programs(spec)}
            theirs = config.model_copy(update={"judge": {}, "custom": loaded})
            load = partial(load_answer, form, theirs, max_new_tokens, rewards_digest(theirs))
            with refused():
                self._guard = Guard()
            output, memory = Output(show, "reward functions"), int(config.memory * GIB)
            for _ in range(workers):
                worker = Worker(load, memory=memory, output=output.write, guard=self._guard)
                self._threads.append(ScoringThread(worker, task, rewards, config, self._jobs))
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
            job = Job(Future(), sampled, judged, own)
            self._jobs.put(job)
            return job.future
        job = Job(Future(), sampled, judged, own)
        if self._later is None:
            self._score(job)
        else:
            self._task.begin(sampled.texts, sampled.problem.answer)
            self._later.submit(self._score, job)
        return job.future

    def _score(self, job: Job) -> None:
        """Score a job in this process; what goes wrong is its result."""
        sampled = job.sampled
        others = [reward for reward in unjudged(asked(self._rewards, sampled)) if reward.name not in job.here]
        try:
            job = job._replace(here={**job.here, **self._here(others, sampled, None)})
            job.deliver(
                self._rewards, [self._task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
            )
        except Exception as error:
            job.future.set_exception(error)

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
        return {**found, **self._awaiting.start(later, seconds)}

    def close(self) -> None:
        """End the workers and whatever they started; groups that are not scored yet are cancelled."""
        self._closed = True
        if self._later is not None:
            self._later.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.stop()
        self._jobs.close()
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


def worker_count(config: RewardsConfig) -> int:
    """Worker processes that the settings ask for; `auto` is half of the cores, at most 4, where they can load a reward."""
    if config.workers != "auto":
        return config.workers
    return max(1, min(4, cores() // 2)) if len(config.custom) > len(config.of_the_program) else 0
