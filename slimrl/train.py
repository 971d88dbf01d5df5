"""Reinforcement learning from verifiable rewards: the loop, and the update.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from slimrl.algorithm.batch import make_batch, microbatches, minibatches, packed_tokens, take
from slimrl.algorithm.groups import Collected, collect_groups
from slimrl.algorithm.kl import kl_penalty
from slimrl.algorithm.loss import clipped_surrogate, token_weights
from slimrl.config import TrainConfig
from slimrl.display import Display
from slimrl.doctor import examine, look
from slimrl.errors import DivergedError
from slimrl.evaluate import Comparison, Evaluation, compare, evaluate
from slimrl.machine import measure_limits, peak_memory
from slimrl.memory import MOST_TOKENS, compare_memory
from slimrl.model.checkpointing import checkpointed
from slimrl.model.cost import cost_of
from slimrl.model.loading import Policy, fingerprint, freeze
from slimrl.model.logprobs import token_logprobs
from slimrl.model.masters import MasterAdamW, learning_rate, make_optimizer
from slimrl.model.packing import pack
from slimrl.prepare import TrainSetup, prepare_training
from slimrl.records import Batch, Group
from slimrl.runs.directory import RunDirectory, new_run
from slimrl.runs.metrics import Metrics, TokenMeans, describe
from slimrl.stopwatch import OFF, Stopwatch, mean_profile
from slimrl.switches import Seen, combine, inert_switches


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
        run = RunDirectory.create(path, config, setup.policy, verb="train", memory=setup.memory.table())
        with run.recording():
            return train_and_measure(setup, run, display)


def train_and_measure(setup: TrainSetup, run: RunDirectory, display: Display) -> TrainSummary:
    """Held-out accuracy, the steps, held-out accuracy again."""
    config, policy = setup.config, setup.policy
    reference = freeze(policy) if config.algorithm.kl_coef else None
    optimizer = make_optimizer(policy.model, config.optimizer)
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
            carried=carried,
        )
        carried = collected.surplus
        rolled = time.perf_counter()
        updated = update(policy, reference, optimizer, collected, config, step, watch)
        done = time.perf_counter()

        seconds += done - started
        stale = sum(group.step < step for group in collected.groups)
        seen = combine(seen, look(collected.sampled, config, carried=stale))
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
    """Steps of the whole run, reckoned after step `step` (from 0) with `tokens` sampled so far; exact once it is over."""
    if not config.max_tokens or tokens == 0:
        return config.steps
    rest = max(0, config.max_tokens - tokens)
    return min(config.steps, step + 1 + math.ceil(rest * (step + 1) / tokens))


def update(
    policy: Policy,
    reference: Policy | None,
    optimizer: MasterAdamW,
    collected: Collected,
    config: TrainConfig,
    step: int,
    watch: Stopwatch = OFF,
) -> Metrics:
    """The optimizer updates of one step, or none where nothing carries loss."""
    if not collected.groups:
        return {"update/skipped": 1.0}
    batch = make_batch(
        collected.groups,
        scale_rewards=config.algorithm.scale_rewards,
        overlong_filtering=config.algorithm.overlong_filtering,
        step=step,
        pad_id=policy.pad_id,
    )
    if not batch.loss_mask.any():
        return {"update/skipped": 1.0}
    return update_policy(policy, reference, optimizer, batch, config, step, watch)


def update_policy(
    policy: Policy,
    reference: Policy | None,
    optimizer: MasterAdamW,
    batch: Batch,
    config: TrainConfig,
    step: int,
    watch: Stopwatch = OFF,
) -> Metrics:
    """Epochs x minibatches of one rollout batch; each minibatch is one optimizer update."""
    settings = config.optimizer
    with watch.part("reference"):
        reference_logprobs = None if reference is None else batch_logprobs(reference, batch, config, watch)
    updates_per_step = settings.minibatches * settings.epochs
    parts = minibatches(batch.groups, count=settings.minibatches)
    collected: list[Metrics] = []
    for number in range(len(parts) * settings.epochs):
        rows = parts[number % len(parts)]
        means = accumulate_gradient(
            policy,
            take(batch, rows),
            None if reference_logprobs is None else reference_logprobs[rows],
            optimizer.backward,
            config,
            first_update=number == 0,
            watch=watch,
        )
        rate = learning_rate(
            step * updates_per_step + number,
            peak=settings.learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup_steps,
            total=config.steps * updates_per_step,
        )
        with watch.part("optimizer"):
            collected.append(means | optimizer.step(rate))
    means = {
        key: sum(m[key] for m in collected if key in m) / sum(key in m for m in collected)
        for key in dict.fromkeys(key for m in collected for key in m)
    }
    largest = "update/microbatch_tokens"
    return means | {largest: max(m.get(largest, 0.0) for m in collected)}


def accumulate_gradient(
    policy: Policy,
    batch: Batch,
    reference_logprobs: Tensor | None,
    backward: Callable[[Tensor], None],
    config: TrainConfig,
    *,
    first_update: bool,
    watch: Stopwatch = OFF,
) -> Metrics:
    """Forward and backward over the micro-batches of one optimizer update; the split cannot change the gradient.

    `backward` is called once per micro-batch with its share of the loss. Raises DivergedError for a loss that is not
    finite, before it can reach the weights.
    """
    algorithm = config.algorithm
    single = config.optimizer.minibatches * config.optimizer.epochs == 1
    weights = token_weights(
        batch.loss_mask,
        batch.completion_mask,
        batch.groups,
        algorithm.aggregation,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    parts = split(batch, trained_rows(batch, config), config)
    means = TokenMeans()
    again = config.optimizer.activation_checkpointing == "on"
    for rows in parts:
        part = take(batch, rows)
        with watch.part("forward"), checkpointed(policy.model, again):
            logprobs, entropy = masked_logprobs(
                policy, part, temperature=config.rollout.temperature, watch=watch, passes=3
            )
        micro = to_device(part, policy.device)
        width = micro.inputs.shape[1]
        weight = weights[rows, :width].to(policy.device)
        if algorithm.aggregation == "microbatch_token_mean":
            weight = micro.loss_mask / micro.loss_mask.sum() / len(parts)
        fresh = logprobs.detach()
        old = torch.where(micro.on_policy[:, None], fresh, micro.sampler_logprobs) if single else micro.sampler_logprobs
        advantages = micro.advantages[:, None]
        value = clipped_surrogate(logprobs, old, advantages, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
        if reference_logprobs is not None:
            kl = kl_penalty(algorithm.kl_estimator, logprobs, reference_logprobs[rows, :width])
            value = value + algorithm.kl_coef * kl
            means.add("kl", kl.detach(), micro.loss_mask)
        loss = (weight * value).sum()
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()}; this update was not applied. Lower optimizer.learning_rate, or look at the last "
                "rollouts for what went wrong"
            )
        with watch.part("backward"):
            backward(loss)
        ratio = (fresh - old).exp()
        low = (ratio < 1 - algorithm.clip_low) & (advantages < 0)
        high = (ratio > 1 + algorithm.clip_high) & (advantages > 0)
        means.total("loss", loss.detach())
        means.most("update/microbatch_tokens", packed_tokens(part))
        means.add("entropy", entropy, micro.loss_mask)
        means.add("clip_ratio/low_mean", low, micro.loss_mask)
        means.add("clip_ratio/high_mean", high, micro.loss_mask)
        means.add("clip_ratio/region_mean", low | high, micro.loss_mask)
        if first_update:
            gap = (fresh - micro.sampler_logprobs).abs()
            means.add("sampling/sampling_logp_difference/mean", gap, micro.loss_mask & micro.on_policy[:, None])
            means.maximum("sampling/sampling_logp_difference/max", gap, micro.loss_mask & micro.on_policy[:, None])
    return means.result()


def trained_rows(batch: Batch, config: TrainConfig) -> Tensor:
    """[n] rows that can have a gradient: those with loss and, where no KL pulls at them, with an advantage.

    Weights count every row whether it is computed or not, so leaving out what is 0 changes nothing. One row stays, for
    an optimizer that sees a gradient of 0 goes on by its momentum, and one that sees none does not.
    """
    wanted = batch.loss_mask.any(1)
    if not config.algorithm.kl_coef and config.algorithm.aggregation != "microbatch_token_mean":
        moving = wanted & (batch.advantages != 0)
        wanted = moving if moving.any() else wanted & (wanted.cumsum(0) == 1)
    return wanted.nonzero().squeeze(-1)


def split(batch: Batch, rows: Tensor, config: TrainConfig) -> list[Tensor]:
    """The given rows in micro-batches that fit `optimizer.microbatch_tokens`; without a plan, `auto` is its upper end."""
    parts = microbatches(
        batch.lengths[rows],
        batch.prompt_lengths[rows],
        batch.groups[rows],
        max_tokens=MOST_TOKENS if config.optimizer.microbatch_tokens == "auto" else config.optimizer.microbatch_tokens,
    )
    return [rows[part] for part in parts]


def masked_logprobs(
    policy: Policy, batch: Batch, *, temperature: float, watch: Stopwatch = OFF, passes: int = 1
) -> tuple[Tensor, Tensor]:
    """Log-probability (with gradient) and entropy (without) of the tokens that carry loss: [B, L] nats, 0 elsewhere.

    The batch lies on the CPU, where its layout is made; the result on the policy's device. `passes` is the work in forward
    passes that `watch` is told of: 3 where a backward pass follows.
    """
    packed = pack(batch.inputs, batch.lengths, batch.prompt_lengths, batch.groups, device=policy.device)
    if watch.on:
        own = batch.lengths - batch.prompt_lengths
        pairs = float((own * (batch.prompt_lengths + own / 2)).sum())
        watch.count(flops=passes * cost_of(policy).forward(len(packed.ids), float(batch.loss_mask.sum()), pairs))
    mask = batch.loss_mask.to(policy.device)
    hidden = policy.packed_hidden(packed).index_select(0, packed.places[mask])
    targets = batch.targets.to(policy.device)[mask]
    logprobs, entropy = token_logprobs(policy.head, hidden, targets, temperature=temperature)
    blank = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return blank.masked_scatter(mask, logprobs), blank.masked_scatter(mask, entropy)


@torch.no_grad()
def batch_logprobs(policy: Policy, batch: Batch, config: TrainConfig, watch: Stopwatch = OFF) -> Tensor:
    """[B, L] nats under a frozen policy, in micro-batches."""
    result = torch.zeros_like(batch.sampler_logprobs, device=policy.device)
    for rows in split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1), config):
        temperature = config.rollout.temperature
        logprobs, _ = masked_logprobs(policy, take(batch, rows), temperature=temperature, watch=watch)
        result[rows, : logprobs.shape[1]] = logprobs
    return result


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    return Batch(**{name: getattr(batch, name).to(device) for name in Batch.__dataclass_fields__})


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
        memory=compare_memory(
            setup.memory,
            peak_memory(setup.policy.device),
            largest_microbatch=int(max((row.get("update/microbatch_tokens", 0) for row in run.history), default=0)),
        ),
        profile=mean_profile(run.history),
    )
