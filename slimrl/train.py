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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from slimrl.algorithm.groups import collect_groups
from slimrl.config import TrainConfig
from slimrl.display import Display
from slimrl.doctor import examine, look
from slimrl.evaluate import Comparison, Evaluation, compare, evaluate
from slimrl.machine import measure_limits, peak_memory
from slimrl.memory import compare_memory
from slimrl.model.loading import fingerprint
from slimrl.prepare import TrainSetup, prepare_training
from slimrl.records import Group
from slimrl.runs.directory import RunDirectory, new_run
from slimrl.runs.metrics import describe
from slimrl.stopwatch import OFF, Stopwatch, mean_profile
from slimrl.switches import Seen, combine, confounded_switches, inert_switches, note_update
from slimrl.update import make_learner, update


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


def train(config: TrainConfig, display: Display) -> TrainSummary:
    """Train a policy; the body is the algorithm, top to bottom. Raises SlimError kinds for what a user can mend."""
    path = new_run(config, "train")
    setup = prepare_training(config)
    with setup.scorer:
        display.opening(examine(setup), setup.notes)
        run = RunDirectory.create(
            path, config, setup.policy, verb="train", memory=setup.memory.table(), rejected=setup.task.rejected
        )
        with run.recording():
            return train_and_measure(setup, run, display)


def train_and_measure(setup: TrainSetup, run: RunDirectory, display: Display) -> TrainSummary:
    """Held-out accuracy, the steps, held-out accuracy again."""
    config, policy = setup.config, setup.policy
    learner = make_learner(policy, config)
    weights = {reward.name: reward.weight for reward in setup.rewards}
    display.say(f"measuring held-out accuracy on {len(setup.held_out) + len(setup.harder)} problems")
    before = evaluate(setup, step=0)
    run.log_evaluation(before)
    display.evaluation(before)

    watch = Stopwatch(policy.device) if config.log.profile else OFF
    limits = measure_limits(policy.device, policy.model.dtype) if config.log.profile else None
    setup.engine.watch = watch
    carried: Sequence[Group] = ()
    seen, tokens, seconds = look([], config), 0, 0.0
    for step in range(config.steps):
        watch.start()
        started = time.perf_counter()
        collected = collect_groups(
            setup.training_problems(step=step, count=config.rollout.problems),
            partial(setup.roll_out, stream="train", step=step, strict=step == 0),
            count=config.rollout.problems,
            dynamic_sampling=config.algorithm.dynamic_sampling,
            signal=config.algorithm.signal,
            refill_budget=config.algorithm.refill_budget,
            refill_share=config.algorithm.refill_share,
            carried=carried,
        )
        carried = collected.surplus
        setup.curriculum.observe(collected.sampled)
        rolled = time.perf_counter()
        updated = update(learner, collected, config, step, reward_weights=weights, watch=watch)
        done = time.perf_counter()

        seconds += done - started
        stale = sum(group.step < step for group in collected.groups)
        seen = note_update(combine(seen, look(collected.sampled, config, carried=stale)), updated)
        sampled = sum(len(r.completion.token_ids) for g in collected.sampled for r in g.rollouts)
        tokens += sampled
        metrics = describe(collected, config.algorithm.signal) | updated
        metrics |= {
            "num_tokens": tokens,
            "time/rollout": rolled - started,
            "time/update": done - rolled,
            "time/total": seconds,
        }
        if limits is not None:
            metrics |= watch.lap(sampled, limits)
        run.log_step(step, metrics, collected if config.log.rollouts else None)
        run.save_curriculum(setup.curriculum.state)
        steps = expected_steps(config, step, tokens)
        display.step(step, steps, metrics, collected, seconds, setup.task)
        if step + 1 == steps:
            break
        if config.evaluation.every and (step + 1) % config.evaluation.every == 0:
            between = evaluate(setup, step=step + 1)
            run.log_evaluation(between)
            display.evaluation(between)

    after = evaluate(setup, step=len(run.history))
    run.log_evaluation(after)
    if config.log.model:
        run.save_final(policy)
    summary = summarize(setup, run, before, after, tokens, seconds, seen)
    run.finish(summary)
    display.closing(run.path, before, after, summary)
    return summary


def expected_steps(config: TrainConfig, step: int, tokens: int) -> int:
    """Steps of the whole run, reckoned after step `step` (from 0) with `tokens` sampled so far; exact once it is over.

    A token budget ends a run at the step whose end is nearest to it, for runs that all overshoot do so by chance.
    """
    if not config.max_tokens or tokens == 0:
        return config.steps
    rest = max(0, config.max_tokens - tokens)
    return min(config.steps, step + 1 + math.floor(rest * (step + 1) / tokens + 0.5))


def summarize(
    setup: TrainSetup,
    run: RunDirectory,
    before: Evaluation,
    after: Evaluation,
    tokens: int,
    seconds: float,
    seen: Seen,
) -> TrainSummary:
    """Before and after on the same problems, with the paired difference."""
    config = setup.config
    first, last = before.summaries(), after.summaries()
    harder = {"before": first["harder"], "after": last["harder"]} if "harder" in first else {}
    return TrainSummary(
        run=str(run.path),
        before=first["test"],
        after=last["test"],
        difference=compare(before, after),
        harder=harder,
        steps=len(run.history),
        weights=fingerprint(setup.policy.model),
        tokens_generated=tokens,
        seconds=seconds,
        inert=inert_switches(config, seen),
        confounded=confounded_switches(config, seen),
        memory=compare_memory(
            setup.memory,
            peak_memory(setup.policy.device),
            largest_microbatch=int(max((row.get("update/microbatch_tokens", 0) for row in run.history), default=0)),
        ),
        profile=mean_profile(run.history),
    )
