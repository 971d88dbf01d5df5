"""The life of a run, the same for training and for imitation: opened, measured, kept in checkpoints, stopped, finished.

    find_run -> prepare -> open_run -> Session: measure, steps, measure, finish

This module does not know what a step does, nor what a checkpoint of the run holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.config.files import settings_of, with_chosen
from slimrl.evaluate import bounds_of, evaluate
from slimrl.machine.ranks import RankLostError, named_loss
from slimrl.machine.signals import MAX_TIME, PREEMPTED, Stop, Stopped
from slimrl.preflight.notes import unmoved_note
from slimrl.preflight.setup import Setup
from slimrl.results import SftSummary, TrainSummary
from slimrl.runs.directory import RunDirectory
from slimrl.runs.files import rollout_rows
from slimrl.runs.findings import failing_calls
from slimrl.runs.reader import way_to_resume
from slimrl.session.identity import compare_identity, identity
from slimrl.session.keeper import Keeper
from slimrl.session.listeners import Screen, Sink
from slimrl.session.resume import Config, RunLookup, known_evaluations
from slimrl.session.state import State, Write
from slimrl.text import counted


@contextmanager
def open_run(
    found: RunLookup[Config],
    setup: Setup[Any],
    screen: Screen,
    stop: Stop,
    *,
    force: bool,
    told: Mapping[str, Any] = {},
) -> Iterator[RunDirectory]:
    """The directory of a run, new or reopened; the block's end, however it comes, is recorded in it. `told` is what its beginning
    has told the user already, for run.json.

    From here on a signal waits for the next safe point. Raises SettingsError for an interrupted run that would end otherwise
    than it would have, unless only software changed and `force` is given; DataError where some of its records are missing.
    """
    made_from = identity(setup)
    resumed = found.status == "interrupted"
    changes = compare_identity(found.path, found.recorded, made_from, force=force) if resumed else []
    for note in (*setup.notes, *found.notes, *changes):
        screen.note(note)
    if resumed:
        measured = known_evaluations(found, bounds_of(setup))
        stop.defer()
        run = RunDirectory.reopen(found.path, found.wanted, found.lock, found.step, measured, made_from)
    else:
        record = {
            "verb": found.verb,
            "memory": setup.memory.table(),
            "parameters": setup.policy.parameters,
            "chosen": setup.chosen,
            "told": {"notes": [*setup.notes, *found.notes], **told},
            **made_from,
        }
        stop.defer()
        config = with_chosen(found.wanted, setup.chosen)
        run = RunDirectory.create(found.path, config, record, setup.task.rejected)
    with run.recording():
        if resumed:
            screen.say(f"resuming after step {found.step}")
        yield run


@dataclass
class Session(Generic[State]):
    """A run on its way: its state, and all that has to happen around its steps."""

    run: RunDirectory
    setup: Setup[Any]
    screen: Screen
    sinks: Sequence[Sink]
    state: State
    """After the last step; `record` replaces it."""
    save: Callable[[State], Write]
    """Begins a checkpoint of the run in a state."""
    max_tokens: int = 0
    """Tokens after which the run ends; 0: its steps decide."""
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = self.setup.config.checkpoint
        self.keeper = Keeper(self.run, checkpoint, lambda: self.save(self.state), self.screen.say)
        self._sinks = [*self.sinks]
        self._sampler_is_stale = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block of the run's steps and its end; a run that is told to stop leaves a checkpoint."""
        settings = settings_of(self.setup.config)
        self._tell(lambda sink: sink.begin(self.run.path, settings, self.state.step))
        with ExitStack() as end:
            end.callback(self._tell, lambda sink: sink.close())
            end.enter_context(self.keeper.settled())
            try:
                yield
            except Stopped as reason:  # raised only where no weight has moved since the last step
                self.keeper.keep(self.state.step)
                where = f" after step {self.state.step}; resume with {way_to_resume(self.run.path)}"
                if reason.cause == MAX_TIME and not self.state.step:
                    where += ", and raise max_time, which was over before the first step"
                raise Stopped(reason.cause, reason.exit_code, where) from None
            except RankLostError:  # weights have moved, or a part of the state is lost
                where = f" after step {self.state.step}, when no checkpoint could be made; resume with "
                where += f"{way_to_resume(self.run.path)}, which goes on from the newest one"
                raise Stopped(f"the loss of another process{named_loss()}", PREEMPTED, where) from None

    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 0; between them checkpoints are kept and held-out accuracy is measured."""
        while True:
            step, total = self.state.step, self.total_steps()
            self.keeper.offer(step, last=step >= total)
            if self._is_measured(step, total) and step not in self.run.measured.summaries:
                self._measure(step)
                if step < total:
                    self.keeper.offer_best(step)
            if step >= total:
                return
            yield step

    def total_steps(self) -> int:
        """Steps of the whole run, as far as it is known; exact once it is over."""
        return expected_steps(self.setup.config.steps, self.max_tokens, self.state.step, self.state.tokens)

    def record(
        self, state: State, metrics: Metrics, collected: Collected | None = None, tokens: bytes | None = None
    ) -> None:
        """Take the state after a step; log its metrics and, where they are given, its rollouts and the file of their tokens."""
        self.run.log_step(self.state.step, metrics, collected, tokens)
        self.state = state
        self._sampler_is_stale = True
        if note := unmoved_note(self.setup.policy, self.setup.config.optimizer.peak_rate, self.run.history):
            self.screen.note(note)
        for sentence in failing_calls(self.run.history):
            self.screen.note(sentence)
        self._tell(lambda sink: sink.step(state.step, metrics))

    def tell_samples(self, collected: Collected) -> None:
        """Show the sinks some completions of the step that was recorded last."""
        log, step = self.setup.config.log, self.state.step
        if self._sinks and log.samples_every and step % log.samples_every == 0:
            some = replace(collected, groups=(), sampled=collected.sampled[: log.samples])
            self._tell(lambda sink: sink.samples(step, rollout_rows(some)))

    def refresh_sampler(self) -> None:
        """Tell the sampler, before it samples, that the weights have changed since it was told last."""
        if self._sampler_is_stale:
            self.setup.engine.weights_changed()
        self._sampler_is_stale = False

    def finish(self, summary: TrainSummary | SftSummary, *, store_model: bool) -> None:
        """Write the last files of the run, and remove the checkpoints that only served to resume it."""
        with self.keeper.ending(self.state.step):
            if store_model:
                self.run.save_final(self.setup.policy)
                if sentence := self.setup.policy.rounding_note():
                    self.screen.note(sentence)
            self.run.finish(summary)
        self.keeper.finish(self.state.step)
        self._tell(lambda sink: sink.finish(asdict(summary)))

    def _is_measured(self, step: int, total: int) -> bool:
        every = self.setup.config.evaluation.every
        return step in (0, total) or bool(every and step % every == 0)

    def _measure(self, step: int) -> None:
        if step == 0:
            self.screen.say(f"measuring held-out accuracy on {counted(len(self.setup.measured), 'problem')}")
        self.refresh_sampler()
        found = evaluate(self.setup, step=step, progress=self.screen.evaluating)
        self.run.log_evaluation(found)
        self.screen.evaluation(found)
        self._tell(lambda sink: sink.evaluation(step, self.run.measured.summaries[step]))

    def _tell(self, call: Callable[[Sink], None]) -> None:
        """Call every sink; one that fails is reported and left out from then on."""
        for sink in [*self._sinks]:
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                name = getattr(sink, "name", type(sink).__name__)  # whatever it lacks, the run goes on
                sentence = f"{name} failed ({error}) and gets no further metrics of this run"
                self.screen.say(sentence, "yellow")
                self.run.note(self.state.step, "sink failed", why=sentence)


def expected_steps(steps: int, max_tokens: int, taken: int, tokens: int) -> int:
    """Steps of a whole run, estimated after `taken` of them with `tokens` so far; exact once it is over.

    A token budget ends a run at the step whose end is nearest to it: runs that all overshoot would do so by chance.
    """
    if not max_tokens or tokens == 0:
        return steps
    rest = max(0, max_tokens - tokens)
    return min(steps, taken + math.floor(rest * taken / tokens + 0.5))
