"""Reinforcement learning from verifiable rewards: the loop; slimrl/learner/update.py has what follows a step's rollouts.

    problems -> completions -> rollouts -> groups -> batch -> loss -> step -> log

How this differs from the papers, by decision (docs/techniques.md has the formulas):
1. Old log-probabilities are the sampler's own where the module is float32, and the trainer's before the first update where
   it is narrower; with one update per batch none are needed, the ratio is 1 by construction.
2. Token weights are computed once per optimizer step over all of its rows, so micro-batches change
   the gradient by no more than rounding.
3. Dynamic sampling keeps surplus groups for later steps and has a budget.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from slimrl.algorithm.batch import tensors_of
from slimrl.algorithm.groups import DynamicSampling, collect_groups
from slimrl.algorithm.metrics import describe, is_finite, reasons
from slimrl.config.files import with_chosen
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import DivergedError, SettingsError
from slimrl.evaluate import Comparison, compare, evaluate
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.machine.limits import Limits, is_out_of_memory, measure_limits, peak_memory
from slimrl.machine.profiler import mean_profile
from slimrl.machine.signals import Stop, Stopped, seconds_of
from slimrl.machine.threads import fix_threads
from slimrl.preflight.doctor import examine, look
from slimrl.preflight.effects import combine, confounded_switches, inert_switches, note_update
from slimrl.preflight.memory import compare_memory
from slimrl.preflight.setup import TrainSetup, prepare_training
from slimrl.runs.checkpoints import Checkpoint, newest
from slimrl.runs.directory import RunDirectory, versions
from slimrl.runs.durable import digest
from slimrl.session.keeping import Keeper
from slimrl.session.resume import Interrupted, compare_identity, find_run, identity, known_evaluations
from slimrl.session.state import RunState, are_finite, optimizer_tensors, restore, save

FAULTS = 3
"""Steps in a row with a number that is not finite, after which a run goes back, once."""
WINDOW = 20
"""Steps over which rewards.unscorable_limit is counted."""


@dataclass(frozen=True)
class TrainSummary:
    """What `slimrl train --json` prints."""

    run: str
    before: dict[str, float]
    after: dict[str, float]
    difference: Comparison
    harder: dict[str, dict[str, float]]
    steps: int
    """Taken; fewer than asked for where max_tokens ended the run."""
    weights: str
    """SHA-256 of the trained weights: equal where two runs are equal to the last bit."""
    optimizer: str
    """The same of the optimizers' masters and moments."""
    tokens_generated: int
    seconds: float
    """Training without set-up and evaluation."""
    inert: list[str]
    """Switches that cannot have changed anything."""
    confounded: list[str]
    """Switches that acted, but also as something else."""
    unscorable: dict[str, int]
    """Completions that could not be scored, by reason."""
    memory: dict[str, float]
    """Peaks in GiB, `planned` for at most, `estimated` for what came up and `measured`; `error` of the estimate."""
    profile: dict[str, float]
    """Means over the steps, weighted by their time; empty without log.profile."""


def train(
    config: TrainConfig,
    display: Display,
    *,
    stop: Stop | None = None,
    resume: bool = False,
    force: bool = False,
) -> TrainSummary:
    """Train a policy; the body is the algorithm, top to bottom.

    With `resume` a run of this name that was interrupted goes on, one that is finished is only reported, and one that does not
    exist is begun; `force` goes on although the software changed. Raises SlimError kinds for what a user can mend, and
    Stopped, a checkpoint left, where that was asked.
    """
    stop = stop or Stop()
    stop.after(seconds_of(config.max_time))
    found = find_run(config, "train", resume=resume)
    if found.summary is not None:
        display.say(f"{found.path} is finished; nothing is left to do")
        return TrainSummary(**found.summary)
    if found.interrupted is not None:
        try:
            return go_on(found.interrupted, display, stop, force=force)
        finally:
            found.interrupted.lock.release()
    setup = prepare_training(config, stop=stop)
    with setup.scorer:
        display.opening(examine(setup), setup.notes, config)
        memory, known = setup.memory.table(), identity(setup)
        stop.defer()
        run = RunDirectory.create(
            found.path,
            with_chosen(config, setup.chosen),
            setup.policy,
            verb="train",
            memory=memory,
            rejected=setup.task.rejected,
            chosen=setup.chosen,
            **known,
        )
        with run.recording():
            return train_and_measure(setup, run, display, stop)


def go_on(interrupted: Interrupted[TrainConfig], display: Display, stop: Stop, *, force: bool) -> TrainSummary:
    """The rest of a run that was interrupted."""
    fix_threads(int(interrupted.recorded["threads"]))  # other threads, other sums
    setup = prepare_training(interrupted.config, interrupted.plan, stop)
    with setup.scorer:
        known = identity(setup)
        changes = compare_identity(interrupted, setup, known, force=force)
        for note in (*setup.notes, *interrupted.notes, *changes):
            display.note(note)
        measured = known_evaluations(interrupted)
        known |= versions(setup.policy)
        stop.defer()
        run = RunDirectory.reopen(
            interrupted.path, interrupted.wanted, interrupted.lock, step=interrupted.step, **known
        )
        if known["rewards"] != interrupted.recorded["rewards"]:
            run.mended = interrupted.step
        with run.recording():
            run.measured = measured
            display.say(f"going on after step {interrupted.step}")
            return train_and_measure(setup, run, display, stop, interrupted.checkpoint)


def train_and_measure(
    setup: TrainSetup, run: RunDirectory, display: Display, stop: Stop, checkpoint: Checkpoint | None = None
) -> TrainSummary:
    """Held-out accuracy, the steps, held-out accuracy again; what is stopped leaves a checkpoint."""
    config = setup.config
    microbatcher = Microbatcher(config, setup.memory.plan, profiler=setup.watch, stop=stop)
    weights = {reward.name: reward.weight for reward in setup.rewards}
    learner = Learner(setup.policy, config, microbatcher, reward_weights=weights, exact_sampler=setup.engine.exact)
    state = restore(checkpoint, setup, learner) if checkpoint else RunState()
    limits = measure_limits(setup.policy.device, setup.policy.model.dtype) if config.log.profile else None
    keeper = Keeper(run, config, display, safe=checkpoint.step if checkpoint else -1)

    def write() -> Checkpoint:
        return save(run, setup, learner, state)

    try:
        while True:
            keeper.offer(state.step, write)
            steps = expected_steps(config, state.step, state.tokens)
            if is_measured(config, state.step, steps) and state.step not in run.measured.summaries:
                measure(setup, run, display, state.step)
                if state.step < steps:
                    keeper.offer_best(state.step, write)
            if state.step >= steps:
                break
            with in_words_where_memory_ran_out():
                state = take_step(setup, run, learner, state, display, limits)
            if sentence := unscorable(run, config):
                keeper.keep(state.step, write)
                raise SettingsError(sentence)
            if state.faults >= FAULTS:
                state = roll_back(setup, run, learner, state, display)
                keeper.start_over()
    except Stopped as reason:  # raised only where no weight has moved since the last step
        learner.drop()
        keeper.keep(state.step, write)
        where = f" after step {state.step}; slimrl train --resume {run.path} goes on"
        raise Stopped(reason.cause, reason.exit_code, where) from None

    with keeper.ending(state.step, write):
        if config.log.model:
            run.save_final(setup.policy)
        summary = summarize(setup, run, learner, state)
        run.finish(summary)
    keeper.finish(state.step)
    display.closing(run.path, run.measured.first, run.measured.last, summary, config)
    return summary


def take_step(
    setup: TrainSetup,
    run: RunDirectory,
    learner: Learner,
    state: RunState,
    display: Display,
    limits: Limits | None,
) -> RunState:
    """One step of the algorithm: the state after it. Raises Stopped with everything as it was before, SettingsError where
    memory does not suffice, and DivergedError where no problem is left.
    """
    config, step, profiler = setup.config, state.step, learner.microbatcher.profiler
    profiler.start()
    started = time.perf_counter()
    sizes = (setup.engine.slots, learner.plan.microbatch_tokens)
    problems = setup.training_problems(step=step, count=config.rollout.problems)
    collected = collect_groups(
        (problem for problem in problems if problem.id not in state.excluded),
        partial(setup.roll_out, stream="train", step=step, strict=step == 0),
        count=config.rollout.problems,
        sampling=DynamicSampling(
            config.algorithm.dynamic_sampling,
            config.algorithm.signal,
            config.algorithm.refill_budget,
            config.algorithm.refill_share,
        ),
        carried=state.carried,
    )
    rolled = time.perf_counter()
    if not collected.sampled and not state.carried and state.excluded:
        raise DivergedError(
            f"after a roll-back past {len(state.excluded)} problems none is left to train on; lower optimizer.learning_rate, or "
            "look at nonfinite/ for what went wrong"
        )
    updated = learner.update(collected.groups, step)
    setup.engine.weights_changed()
    done = time.perf_counter()

    setup.curriculum.observe(collected.sampled)
    stale = sum(group.step < step for group in collected.groups)
    seen = note_update(combine(state.seen, look(collected.sampled, config, carried=stale)), updated.metrics)
    sampled = sum(len(r.completion.token_ids) for g in collected.sampled for r in g.rollouts)
    after = replace(
        state,
        step=step + 1,
        tokens=state.tokens + sampled,
        seconds=state.seconds + done - started,
        carried=tuple(group for group in collected.surplus if is_finite(group)),
        seen=seen,
        unscorable=dict(Counter(state.unscorable) + reasons(collected.sampled)),
        faults=0,
        suspects=(),
    )
    if updated.fault is not None:
        suspects = (*state.suspects, *(group.problem.id for group in collected.groups))
        faults = FAULTS if updated.fault.spoiled else state.faults + 1
        after = replace(after, faults=faults, suspects=suspects)
        run.keep_fault(step + 1, tensors_of(updated.fault.rows), updated.fault.what)
        display.say(f"step {step + 1}: {updated.fault.what}; its update was dropped", "yellow")
    if sizes != (setup.engine.slots, learner.plan.microbatch_tokens):
        now = {"slots": setup.engine.slots, "microbatch_tokens": learner.plan.microbatch_tokens}
        run.note(step + 1, "memory ran out", **now)
        display.say(
            f"memory ran out; from now on {now['slots']} slots, {now['microbatch_tokens']:,} tokens at once", "yellow"
        )
    metrics = describe(collected, config.algorithm.signal) | updated.metrics
    metrics |= {
        "num_tokens": after.tokens,
        "time/rollout": rolled - started,
        "time/update": done - rolled,
        "time/total": after.seconds,
    }
    if limits is not None:
        metrics |= profiler.lap(sampled, limits)
    run.log_step(step, metrics, collected if config.log.rollouts else None)
    display.step(step, expected_steps(config, step + 1, after.tokens), metrics, collected, after.seconds, setup.task)
    return after


@contextmanager
def in_words_where_memory_ran_out() -> Iterator[None]:
    """What no smaller micro-batch mends, as the optimizer's moments in the first step, as a SettingsError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            "memory ran out beside sampling and gradients, as where the optimizer makes its moments; lower rollout.slots and "
            "optimizer.microbatch_tokens, or set model.dtype=bfloat16"
        ) from None


def is_measured(config: TrainConfig, step: int, steps: int) -> bool:
    """Whether held-out accuracy belongs to the record after this step."""
    every = config.evaluation.every
    return step in (0, steps) or bool(every and step % every == 0)


def measure(setup: TrainSetup, run: RunDirectory, display: Display, step: int) -> None:
    """Held-out accuracy as it is now."""
    if step == 0:
        display.say(f"measuring held-out accuracy on {len(setup.held_out) + len(setup.harder)} problems")
    found = evaluate(setup, step=step)
    run.log_evaluation(found)
    display.evaluation(found)


def unscorable(run: RunDirectory, config: TrainConfig) -> str:
    """Why the run must not go on, where too many completions of the last steps could not be scored."""
    rows = [row for row in run.history[-WINDOW:] if row["step"] > run.mended]
    share, limit = sum(row.get("unscorable", 0.0) for row in rows) / WINDOW, config.rewards.unscorable_limit
    if len(rows) < WINDOW or share <= limit:
        return ""
    return (
        f"{share:.1%} of the completions of the last {WINDOW} steps were unscorable, more than "
        f"rewards.unscorable_limit={limit:g}; mend the reward (rollouts/ says what it did) and go on with --resume --force, "
        "or raise the limit"
    )


def roll_back(setup: TrainSetup, run: RunDirectory, learner: Learner, state: RunState, display: Display) -> RunState:
    """To the last checkpoint before the faults, past their problems, once; raises DivergedError the second time.

    Without a checkpoint the weights stay, which no dropped update has touched.
    """
    count = sum(bool(row.get("update/nonfinite")) for row in run.history[-FAULTS:])
    steps = f"{count} steps in a row, up to step {state.step}," if count > 1 else f"step {state.step}"
    what = f"{steps} had a number that was not finite"
    if state.rolled_back:
        raise DivergedError(
            f"{what}, after one roll-back already; nonfinite/ in {run.path} holds their batches, events.jsonl says which number. "
            "Lower optimizer.learning_rate, or set model.dtype=float32"
        )
    excluded = tuple(dict.fromkeys((*state.excluded, *state.suspects)))
    target, said = newest(run.checkpoints, before=state.step - count)
    for sentence in said:
        display.say(f"warning: {sentence}", "yellow")
    if target is None and spoiled(setup, learner):
        raise DivergedError(
            f"the weights were not finite after step {state.step}, and no checkpoint is there to go back to; lower "
            "optimizer.learning_rate"
        )
    before = restore(target, setup, learner) if target else state
    run.rewind(before.step)
    run.note(before.step, "rolled back", why=what, excluded=list(excluded))
    display.say(f"{what}; back to step {before.step}, without their {len(state.suspects)} problems", "yellow")
    carried = tuple(group for group in before.carried if group.problem.id not in excluded)
    return replace(before, carried=carried, faults=0, suspects=(), rolled_back=True, excluded=excluded)


def spoiled(setup: TrainSetup, learner: Learner) -> bool:
    """Whether a weight is not finite."""
    critic = {} if learner.critic is None else learner.critic.critic.state_dict()
    return not are_finite((*setup.policy.model.parameters(), *critic.values()))


def expected_steps(config: TrainConfig, taken: int, tokens: int) -> int:
    """Steps of the whole run, reckoned after `taken` of them with `tokens` sampled so far; exact once it is over.

    A token budget ends a run at the step whose end is nearest to it, for runs that all overshoot do so by chance.
    """
    if not config.max_tokens or tokens == 0:
        return config.steps
    rest = max(0, config.max_tokens - tokens)
    return min(config.steps, taken + math.floor(rest * taken / tokens + 0.5))


def summarize(setup: TrainSetup, run: RunDirectory, learner: Learner, state: RunState) -> TrainSummary:
    """Before and after on the same problems, with the paired difference."""
    config, before, after = setup.config, run.measured.first, run.measured.last
    first, last = before.summaries(), after.summaries()
    harder = {"before": first["harder"], "after": last["harder"]} if "harder" in first else {}
    return TrainSummary(
        run=str(run.path),
        before=first["test"],
        after=last["test"],
        difference=compare(before, after),
        harder=harder,
        steps=state.step,
        weights=digest(setup.policy.trainable),
        optimizer=digest(optimizer_tensors(learner)),
        tokens_generated=state.tokens,
        seconds=state.seconds,
        inert=inert_switches(config, state.seen),
        confounded=confounded_switches(config, state.seen),
        unscorable=dict(state.unscorable),
        memory=compare_memory(
            setup.memory,
            peak_memory(setup.policy.device),
            largest_microbatch=int(max((row.get("update/microbatch_tokens", 0) for row in run.history), default=0)),
        ),
        profile=mean_profile(run.history),
    )
