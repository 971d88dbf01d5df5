"""Reinforcement learning from verifiable rewards: the loop; slimrl/update.py has what follows a step's rollouts.

    problems -> completions -> rollouts -> groups -> batch -> loss -> step -> log

How this differs from the papers, by decision (docs/techniques.md has the formulas):
1. Old log-probabilities are the sampler's own, since sampler and trainer are one module; with one update per batch
   none are needed, the ratio is 1 by construction.
2. Token weights are computed once per optimizer step over all of its rows, so micro-batches cannot change the gradient.
3. Dynamic sampling keeps surplus groups for the next step and has a budget.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial

import torch

from slimrl.algorithm.groups import collect_groups
from slimrl.config import TrainConfig
from slimrl.display import Display
from slimrl.doctor import examine, look
from slimrl.errors import DivergedError, SettingsError
from slimrl.evaluate import Comparison, compare, evaluate, read_evaluations
from slimrl.machine import Limits, measure_limits, peak_memory
from slimrl.memory import compare_memory
from slimrl.model.loading import digest, fingerprint
from slimrl.prepare import TrainSetup, prepare_training
from slimrl.resume import Interrupted, compare_identity, find_interrupted, identity
from slimrl.runs.checkpoints import Checkpoint, newest, prune
from slimrl.runs.directory import RunDirectory, new_run, read_state, run_path
from slimrl.runs.metrics import describe
from slimrl.state import RunState, as_tensors, optimizer_tensors, restore, save, try_to_save
from slimrl.stopping import Stop, Stopped, seconds_of
from slimrl.stopwatch import OFF, Stopwatch, mean_profile
from slimrl.switches import combine, confounded_switches, inert_switches, note_update
from slimrl.update import Learner, make_learner, update

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

    With `resume` a run of this name that was interrupted goes on, one that is finished is only reported, and none is begun
    where there is none; `force` goes on although the software changed. Raises SlimError kinds for what a user can mend, and
    Stopped, a checkpoint left, where that was asked.
    """
    stop = stop or Stop()
    stop.after(seconds_of(config.max_time))
    path = run_path(config, "train")
    state = read_state(path)
    if resume and state.get("status") == "finished":
        display.say(f"{path} is finished; nothing is left to do")
        return TrainSummary(**state["summary"])
    interrupted = find_interrupted(config, "train") if resume else None
    if interrupted is not None:
        try:
            return go_on(interrupted, display, stop, force=force)
        finally:
            interrupted.lock.release()
    if not resume or state or not path.is_dir():  # a folder without run.json was given up before anything was in it
        path = new_run(config, "train")
    setup = prepare_training(config)
    with setup.scorer:
        display.opening(examine(setup), setup.notes)
        known = identity(setup)
        stop.defer()
        run = RunDirectory.create(
            path, config, setup.policy, verb="train", memory=setup.memory.table(), rejected=setup.task.rejected, **known
        )
        with run.recording():
            return train_and_measure(setup, run, display, stop)


def go_on(interrupted: Interrupted[TrainConfig], display: Display, stop: Stop, *, force: bool) -> TrainSummary:
    """The rest of a run that was interrupted."""
    path = interrupted.path
    torch.set_num_threads(int(interrupted.recorded["threads"]))  # other threads, other sums
    setup = prepare_training(interrupted.config)
    with setup.scorer:
        changes = compare_identity(interrupted, setup, identity(setup), force=force)
        for note in (*setup.notes, *interrupted.notes, *changes):
            display.say(f"note: {note}")
        stop.defer()
        run = RunDirectory.reopen(path, interrupted.wanted, interrupted.lock, step=interrupted.step)
        with run.recording():
            run.evaluations = [e for e in read_evaluations(path / "evals") if e.step <= interrupted.step]
            display.say(f"going on after step {interrupted.step}")
            return train_and_measure(setup, run, display, stop, interrupted.checkpoint)


def train_and_measure(
    setup: TrainSetup, run: RunDirectory, display: Display, stop: Stop, checkpoint: Checkpoint | None = None
) -> TrainSummary:
    """Held-out accuracy, the steps, held-out accuracy again; what is interrupted leaves a checkpoint."""
    config = setup.config
    learner = make_learner(setup.policy, config)
    state = restore(checkpoint, setup, learner) if checkpoint else RunState()
    watch = Stopwatch(setup.policy.device) if config.log.profile else OFF
    limits = measure_limits(setup.policy.device, setup.policy.model.dtype) if config.log.profile else None
    setup.engine.watch, setup.engine.stop = watch, stop
    saved = state.step if checkpoint else -1
    unsaved = ""
    try:
        while True:
            steps = expected_steps(config, state.step, state.tokens)
            due = config.checkpoint.every and state.step and state.step % config.checkpoint.every == 0
            if (due or unsaved) and saved != state.step:
                saved, unsaved = keep(run, setup, learner, state, display)
            if is_measured(config, state.step, steps) and state.step not in [e.step for e in run.evaluations]:
                measure(setup, run, display, state.step)
                if is_best(run, state.step) and config.checkpoint.keep_best and 0 < state.step < steps:
                    saved, unsaved = keep(run, setup, learner, state, display)
            if state.step >= steps:
                break
            state = take_step(setup, run, learner, state, display, watch, limits, stop)
            demand_scorable(run, config)
            if state.faults >= FAULTS:
                state = roll_back(setup, run, learner, state, display)
                saved, unsaved = -1, "rolled back"  # what it leaves behind must outlive this process
    except (Stopped, SettingsError) as reason:
        learner.drop()
        if saved != state.step:
            keep(run, setup, learner, state, display)
        if isinstance(reason, Stopped):
            where = f" after step {state.step}; slimrl train --resume {run.path} goes on"
            raise Stopped(reason.cause, reason.exit_code, where) from None
        raise

    if config.log.model:
        run.save_final(setup.policy)
    summary = summarize(setup, run, learner, state)
    run.finish(summary)
    prune(run.checkpoints, keep=0, also=best_step(run) if config.checkpoint.keep_best else ())
    display.closing(run.path, run.evaluations[0], run.evaluations[-1], summary)
    return summary


def take_step(
    setup: TrainSetup,
    run: RunDirectory,
    learner: Learner,
    state: RunState,
    display: Display,
    watch: Stopwatch,
    limits: Limits | None,
    stop: Stop,
) -> RunState:
    """One step of the algorithm: the state after it. Whatever is raised on the way leaves everything as it was before."""
    config, step = setup.config, state.step
    watch.start()
    started = time.perf_counter()
    sizes = (setup.engine.slots, learner.microbatch_tokens)
    problems = setup.training_problems(step=step, count=config.rollout.problems)
    collected = collect_groups(
        (problem for problem in problems if problem.id not in state.excluded),
        partial(setup.roll_out, stream="train", step=step, strict=step == 0),
        count=config.rollout.problems,
        dynamic_sampling=config.algorithm.dynamic_sampling,
        signal=config.algorithm.signal,
        refill_budget=config.algorithm.refill_budget,
        refill_share=config.algorithm.refill_share,
        carried=state.carried,
    )
    rolled = time.perf_counter()
    weights = {reward.name: reward.weight for reward in setup.rewards}
    updated = update(learner, collected, config, step, reward_weights=weights, watch=watch, stop=stop)
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
        carried=collected.surplus,
        seen=seen,
        faults=0,
        suspects=(),
    )
    if updated.fault is not None:
        suspects = (*state.suspects, *(group.problem.id for group in collected.groups))
        faults = FAULTS if updated.fault.spoiled else state.faults + 1
        after = replace(after, faults=faults, suspects=suspects)
        run.keep_fault(step + 1, as_tensors(updated.fault.batch), updated.fault.what)
        display.say(f"step {step + 1}: {updated.fault.what}; its update was dropped", "yellow")
    if sizes != (setup.engine.slots, learner.microbatch_tokens):
        now = {"slots": setup.engine.slots, "microbatch_tokens": learner.microbatch_tokens}
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
        metrics |= watch.lap(sampled, limits)
    run.log_step(step, metrics, collected if config.log.rollouts else None)
    display.step(step, expected_steps(config, step + 1, after.tokens), metrics, collected, after.seconds, setup.task)
    return after


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


def keep(run: RunDirectory, setup: TrainSetup, learner: Learner, state: RunState, display: Display) -> tuple[int, str]:
    """Write a checkpoint and let older ones go; the step that is safe now, or -1 and why, as when the disk is full."""
    settings = setup.config.checkpoint
    also = best_step(run) if settings.keep_best else ()
    reason = try_to_save(
        run, state.step, display, lambda: save(run, setup, learner, state), keep=settings.keep, also=also
    )
    return (-1, reason) if reason else (state.step, "")


def best_step(run: RunDirectory) -> tuple[int, ...]:
    """The step with the best held-out accuracy so far, the earliest where several are alike; none before the first step."""
    measured = [e for e in run.evaluations if e.step]
    best = max(measured, key=lambda e: (e.test.summary()["accuracy"], -e.step), default=None)
    return () if best is None else (best.step,)


def is_best(run: RunDirectory, step: int) -> bool:
    """Whether no evaluation so far was as good as that of this step."""
    return best_step(run) == (step,)


def demand_scorable(run: RunDirectory, config: TrainConfig) -> None:
    """Raises SettingsError where too many completions of the last steps could not be scored."""
    shares, limit = [row.get("unscorable", 0.0) for row in run.history[-WINDOW:]], config.rewards.unscorable_limit
    share = sum(shares) / WINDOW
    if len(shares) == WINDOW and share > limit:
        raise SettingsError(
            f"{share:.1%} of the completions of the last {WINDOW} steps were unscorable, more than "
            f"rewards.unscorable_limit={limit:g}; mend the reward (rollouts/ says what it did), or raise the limit"
        )


def roll_back(setup: TrainSetup, run: RunDirectory, learner: Learner, state: RunState, display: Display) -> RunState:
    """To the last checkpoint before the faults, past their problems, once; raises DivergedError the second time.

    Without a checkpoint the weights stay, which no dropped update has touched.
    """
    first = state.step - len({*(row["step"] for row in run.history[-FAULTS:] if row.get("update/nonfinite"))})
    what = f"{FAULTS} steps in a row, up to step {state.step}, had a number that was not finite"
    if state.rolled_back:
        raise DivergedError(
            f"{what}, after one roll-back already; nonfinite/ in {run.path} holds their batches, events.jsonl says which number. "
            "Lower optimizer.learning_rate, or set model.dtype=float32"
        )
    excluded = tuple(dict.fromkeys((*state.excluded, *state.suspects)))
    target, said = newest(run.checkpoints, before=first)
    for sentence in said:
        display.say(f"warning: {sentence}", "yellow")
    if target is None and spoiled(setup):
        raise DivergedError(
            f"the weights were not finite after step {state.step}, and no checkpoint is there to go back to; lower "
            "optimizer.learning_rate"
        )
    before = restore(target, setup, learner) if target else state
    run.rewind(before.step)
    run.evaluations = [e for e in run.evaluations if e.step <= before.step]
    run.note(before.step, "rolled back", why=what, excluded=list(excluded))
    display.say(f"{what}; back to step {before.step}, without their {len(state.suspects)} problems", "yellow")
    carried = tuple(group for group in before.carried if group.problem.id not in excluded)
    return replace(before, carried=carried, faults=0, suspects=(), rolled_back=True, excluded=excluded)


def spoiled(setup: TrainSetup) -> bool:
    """Whether a weight is not finite."""
    return not all(bool(torch.isfinite(p).all()) for p in setup.policy.model.parameters())


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
    config, before, after = setup.config, run.evaluations[0], run.evaluations[-1]
    first, last = before.summaries(), after.summaries()
    harder = {"before": first["harder"], "after": last["harder"]} if "harder" in first else {}
    return TrainSummary(
        run=str(run.path),
        before=first["test"],
        after=last["test"],
        difference=compare(before, after),
        harder=harder,
        steps=state.step,
        weights=fingerprint(setup.policy.model),
        optimizer=digest(optimizer_tensors(learner)),
        tokens_generated=state.tokens,
        seconds=state.seconds,
        inert=inert_switches(config, state.seen),
        confounded=confounded_switches(config, state.seen),
        memory=compare_memory(
            setup.memory,
            peak_memory(setup.policy.device),
            largest_microbatch=int(max((row.get("update/microbatch_tokens", 0) for row in run.history), default=0)),
        ),
        profile=mean_profile(run.history),
    )
