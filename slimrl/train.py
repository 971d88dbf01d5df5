"""Reinforcement learning from verifiable rewards: the loop.

    problems -> completions -> rollouts -> groups -> batch -> loss -> step -> log

`train` has these in the order in which they happen; slimrl/learner/ has everything from the batch to the step.
How this differs from the papers, by decision (docs/techniques.md has the formulas):
1. Old log-probabilities are the sampler's own where the module is float32, and the trainer's before the first update where
   it is narrower; with one update per batch none are needed, the ratio is 1 by construction.
2. Token weights are computed once per optimizer step over all of its rows, so micro-batches change
   the gradient by no more than rounding.
3. Dynamic sampling keeps surplus groups for later steps and has a budget.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from slimrl.algorithm.batch import tensors_of
from slimrl.algorithm.groups import Collected, DynamicSampling, collect_groups
from slimrl.algorithm.metrics import Metrics, describe, is_finite, reasons
from slimrl.config.schema import TrainConfig, seconds_of
from slimrl.errors import DivergedError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner, UpdateResult
from slimrl.learner.trace import TRACED_GROUPS
from slimrl.machine.limits import measure_limits, peak_memory
from slimrl.machine.profiler import mean_profile
from slimrl.machine.progress import Progress, silent
from slimrl.machine.ranks import ALONE, Ranks, ranks_here
from slimrl.machine.signals import Stop
from slimrl.parallel.lead import announced, begin, leading, share_learner
from slimrl.preflight.doctor import examine
from slimrl.preflight.effects import confounded_switches, inert_switches
from slimrl.preflight.estimate import compare_memory
from slimrl.preflight.observed import combine, note_update, observe
from slimrl.preflight.setup import Setup, TrainSetup, prepare_training
from slimrl.preflight.thinking import thinking_metrics
from slimrl.results import TrainSummary, compare
from slimrl.runs.directory import RunDirectory
from slimrl.runs.durable import digest
from slimrl.runs.findings import findings
from slimrl.runs.tokens import token_file
from slimrl.session.listeners import Screen, Sink
from slimrl.session.recovery import FAULTS, refuse_unscorable, roll_back, watch_memory
from slimrl.session.resume import find_run, recorded_summary
from slimrl.session.session import Session, open_run
from slimrl.session.state import RunState, optimizer_digest, restore, save
from slimrl.session.upload import uploaded


def train(
    config: TrainConfig,
    screen: Screen,
    *,
    sinks: Sequence[Sink] = (),
    stop: Stop | None = None,
    resume: bool = False,
    force: bool = False,
) -> TrainSummary:
    """Train a policy: held-out accuracy, the steps, held-out accuracy again.

    With `resume` a run of this name that was interrupted is resumed, a finished one is only reported, and one that does not
    exist is begun; `force` resumes although the software changed. Of several ranks this process is the leader.
    Raises subclasses of SlimError for what a user can correct, and Stopped, with a checkpoint written, where `stop` says so.
    """
    stop, ranks = stop or Stop(), ranks_here()
    stop.after(seconds_of(config.max_time))
    with ExitStack() as block:
        found = block.enter_context(find_run(config, "train", resume=resume))
        block.enter_context(uploaded(found, screen, stop))
        block.enter_context(leading(ranks))
        if found.status == "finished":
            screen.say(f"{found.path} is finished; nothing is left to do")
            return recorded_summary(found, TrainSummary)
        training = prepare_training(found.config, found.plan, stop, screen.note)
        block.callback(training.close)
        training = divide(training, ranks)
        setup = training.setup
        told = open_screen(training, screen) if found.status == "new" else {}
        run = block.enter_context(open_run(found, setup, screen, stop, force=force, told=told))
        training = replace(training, progress=screen.sampling)
        learner = make_learner(training, screen.updating, ranks)
        state = restore(found.checkpoint, setup, learner) if found.checkpoint else RunState()
        share_learner(setup, learner)
        session = Session(run, setup, screen, sinks, state, partial(save, run, setup, learner), config.max_tokens)
        block.enter_context(session.running())
        limits = measure_limits(setup.policy.device, setup.policy.model.dtype) if config.log.profile else None
        for step in session.steps():
            setup.profiler.start()
            began = time.perf_counter()
            with watch_memory(session, learner):
                session.refresh_sampler()
                collected = collect(training, session.state)  # problems -> completions -> rollouts -> groups
                sampled = time.perf_counter()
                session.keeper.settle()
                settled = time.perf_counter()
                with announced(learner, collected.groups, step):
                    updated = learner.update(collected.groups, step)  # groups -> batch -> loss -> step
            timing = {"time/rollout": sampled - began, "time/update": time.perf_counter() - settled}
            if limits:
                timing |= setup.profiler.lap(sampled_tokens(collected), limits)
            record_step(session, setup, collected, updated, timing)
            refuse_unscorable(session, config.rewards.unscorable_limit)
            if session.state.faults >= FAULTS:
                roll_back(session, setup, learner)
                share_learner(setup, learner)
        summary = summarize(setup, run, learner, session.state)
        session.finish(summary, store_model=setup.config.log.model)
        screen.closing(summary, setup.config)
        return summary


def open_screen(training: TrainSetup, screen: Screen) -> dict[str, list[str]]:
    """Show the preflight of a new run; returns its warnings and notes."""
    report = examine(training)
    screen.opening(report, training.setup.config)
    return {"warnings": report.warnings, "notes": report.notes}


def divide(training: TrainSetup, ranks: Ranks) -> TrainSetup:
    """Let the other ranks prepare the run; returns the setup with an engine that all of them sample for."""
    weights = {reward.name: reward.weight for reward in training.rewards}
    return replace(training, setup=begin(training.setup, ranks, weights))


def make_learner(training: TrainSetup, progress: Progress = silent, ranks: Ranks = ALONE) -> Learner:
    """The learner of a run; `progress` is told of the completions that an update is done with."""
    setup, profiler = training.setup, training.setup.profiler
    microbatcher = Microbatcher(
        setup.config, setup.memory.plan, profiler=profiler, stop=setup.stop, progress=progress, ranks=ranks
    )
    weights = {reward.name: reward.weight for reward in training.rewards}
    exact = setup.engine.exact
    return Learner(
        setup.policy, setup.config, microbatcher, reward_weights=weights, exact_sampler=exact, teacher=setup.teacher
    )


def collect(training: TrainSetup, state: RunState) -> Collected:
    """Sample and score groups for the next step, and select those to train on.

    Raises Stopped with everything as it was before, SettingsError where memory does not suffice, and DivergedError where no
    problem is left.
    """
    config, chosen, step = training.setup.config, training.setup.config.algorithm, state.step
    problems = training.setup.training_problems(step=step, count=config.rollout.problems)
    collected = collect_groups(
        (problem for problem in problems if problem.id not in state.excluded),
        partial(training.roll_out, stream="train", step=step, strict=step == 0),
        count=config.rollout.problems,
        sampling=DynamicSampling(
            chosen.dynamic_sampling, chosen.signal, chosen.refill_budget, chosen.refill_share, chosen.credit
        ),
        carried=state.carried,
    )
    if not collected.sampled and not state.carried and state.excluded:
        raise DivergedError(
            f"after a roll-back past {len(state.excluded)} problems none is left to train on; lower optimizer.learning_rate, or "
            "look at nonfinite/ for what went wrong"
        )
    return collected


def record_step(
    session: Session[RunState], setup: Setup[TrainConfig], collected: Collected, updated: UpdateResult, timing: Metrics
) -> None:
    """Log a step and take the state after it; `timing` are seconds by part, and the profile where there is one."""
    config, before = setup.config, session.state
    setup.curriculum.observe(collected.sampled)
    stale = sum(group.step < before.step for group in collected.groups)
    sampled = [rollout for group in collected.sampled for rollout in group.rollouts]
    state = replace(
        before,
        step=before.step + 1,
        tokens=before.tokens + sampled_tokens(collected),
        seconds=before.seconds + timing["time/rollout"] + timing["time/update"],
        carried=tuple(group for group in collected.surplus if is_finite(group)),
        seen=note_update(combine(before.seen, observe(collected.sampled, config, carried=stale)), updated.metrics),
        unscorable=dict(Counter(before.unscorable) + reasons(rollout.unscorable for rollout in sampled)),
        unmeasured=dict(Counter(before.unmeasured) + reasons(rollout.unmeasured for rollout in sampled)),
        faults=0,
        suspects=(),
    )
    if updated.fault is not None:
        faults = FAULTS if updated.fault.spoiled else before.faults + 1
        suspects = (*before.suspects, *(group.problem.id for group in collected.groups))
        state = replace(state, faults=faults, suspects=suspects)
        session.run.keep_fault(state.step, tensors_of(updated.fault.rows), updated.fault.what)
        session.screen.say(f"step {state.step}: {updated.fault.what}; its update was dropped", "yellow")
    metrics = describe(collected, config.algorithm.signal, config.algorithm.credit) | updated.metrics
    metrics |= thinking_metrics(setup.policy, sampled)
    metrics |= {"num_tokens": state.tokens, **timing, "time/total": state.seconds}
    if config.log.rollouts:
        tokens = token_file(collected, updated.traced, TRACED_GROUPS[config.log.tokens], setup.policy.pieces)
        session.record(state, metrics, collected, tokens)
    else:
        session.record(state, metrics)
    session.tell_samples(collected)
    session.screen.step(before.step, session.total_steps(), metrics, collected, setup.task)


def sampled_tokens(collected: Collected) -> int:
    """Tokens of all completions sampled for a step."""
    return sum(rollout.completion.drawn for group in collected.sampled for rollout in group.rollouts)


def summarize(setup: Setup[TrainConfig], run: RunDirectory, learner: Learner, state: RunState) -> TrainSummary:
    """The summary of a run after its last step: before and after on the same problems, with the paired difference."""
    config, before, after = setup.config, run.measured.first, run.measured.last
    first, last = run.measured.summaries[before.step], run.measured.summaries[after.step]
    ends = {name: {"before": first[name], "after": last[name]} for name in ("harder", "twins") if name in first}
    difference = compare(before, after)
    return TrainSummary(
        run=str(run.path),
        before=first["test"],
        after=last["test"],
        difference=difference,
        harder=ends.get("harder", {}),
        steps=state.step,
        weights=digest(setup.policy.trainable.items()),
        optimizer=optimizer_digest(learner),
        tokens_generated=state.tokens,
        seconds=state.seconds,
        inert=inert_switches(config, state.seen),
        confounded=confounded_switches(config, state.seen),
        unscorable=dict(state.unscorable),
        unmeasured=dict(state.unmeasured),
        memory=compare_memory(
            setup.memory,
            peak_memory(setup.policy.device),
            largest_microbatch=int(max((row.get("update/microbatch_tokens", 0) for row in run.history), default=0)),
        ),
        profile=mean_profile(run.history),
        twins=ends.get("twins", {}),
        findings=findings(
            run.history,
            difference,
            shuffled=config.curriculum.order == "shuffled",
            grouped=config.algorithm.baseline in ("group_mean", "leave_one_out")
            and not (config.algorithm.normalize_components or config.algorithm.entropy_coef),
            taught=bool(config.algorithm.kl_coef or config.algorithm.reference),
            other_sampler=not setup.engine.exact,
        ),
    )
