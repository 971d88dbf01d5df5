"""The learner makes a training step: from the groups that were sampled to new weights.

    groups -> rows -> batch (learner/targets.py) -> minibatches -> micro-batches -> loss -> gradient -> optimizer

`Learner._loss` is the loss that every method is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slimrl.algorithm.batch import make_rows, minibatches, packed_tokens, take, to_device
from slimrl.algorithm.kl import kl_penalty
from slimrl.algorithm.loss import Options, clipped_ratio, is_clipped, surrogate, token_weights, top_entropy_mask
from slimrl.algorithm.metrics import Metrics
from slimrl.config.algorithm import SURROGATES
from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError, SpoiledWeightsError
from slimrl.learner.critic import CriticLearner
from slimrl.learner.divided import DividedLayers, demand_memory, divides
from slimrl.learner.forward import Microbatcher, VocabularyKl
from slimrl.learner.means import TokenMeans, mean_of_updates
from slimrl.learner.offload import offload_reference
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.recompute import checked
from slimrl.learner.schedule import learning_rate
from slimrl.learner.targets import Targets, demand_finite, trained_rows
from slimrl.learner.trace import Trace, begin_trace
from slimrl.machine.ranks import loss_stops
from slimrl.model.policy import Policy, freeze
from slimrl.records import Batch, Group, Plan, Rows, Traced


@dataclass(frozen=True)
class Fault:
    """An update that was dropped because a number was not finite."""

    what: str
    """The number, for a sentence."""
    rows: Rows
    """The `Rows` of the step, or the `Batch` of the update if it was made already."""
    spoiled: bool = False
    """The number was found only in the weights, which must be thrown away."""


@dataclass(frozen=True)
class UpdateResult:
    """Metrics of the updates of a step, the first fault among them, and the numbers of tokens that log.tokens asks for."""

    metrics: Metrics
    fault: Fault | None = None
    traced: Traced | None = None


class Learner:
    """The policy with its optimizer, and the models that it is compared with."""

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        microbatcher: Microbatcher,
        *,
        reward_weights: Mapping[str, float],
        exact_sampler: bool = True,
        teacher: Policy | None = None,
    ) -> None:
        """`reward_weights` by reward name; `exact_sampler` says that rollouts are sampled with the policy's own module; without a
        `teacher` the reference is the policy as it is now.
        """
        self.policy, self.config, self.microbatcher = policy, config, microbatcher
        reference = (freeze(policy) if teacher is None else teacher) if config.algorithm.kl_coef else None
        self.critic = (
            CriticLearner(policy, config, microbatcher.ranks) if config.algorithm.baseline == "critic" else None
        )
        ranks = microbatcher.ranks
        self.layers = DividedLayers(policy, ranks) if divides(config, policy, ranks) else None
        self.optimizer = MasterAdamW(policy.trainable, config.optimizer, ranks, self.layers)
        in_use: Callable[[], AbstractContextManager[None]] = nullcontext
        if reference is not None and self.plan.offload:
            in_use = offload_reference(reference, policy, Path(config.output)).in_use
        self.targets = Targets(
            policy, reference, self.critic, microbatcher, config, reward_weights, in_use, exact_sampler
        )
        self.options = Options(**{f.name: getattr(config.algorithm, f.name) for f in fields(Options)})

    @property
    def plan(self) -> Plan:
        """The memory plan as it is now: where memory ran out, micro-batches have become smaller."""
        return self.microbatcher.plan

    @property
    def optimizers(self) -> list[MasterAdamW]:
        """That of the policy, and that of the critic where there is one."""
        return [self.optimizer, *([] if self.critic is None else [self.critic.optimizer])]

    def update(self, groups: Sequence[Group], step: int) -> UpdateResult:
        """Epochs x minibatches of optimizer updates on the groups of a step; none where nothing carries loss.

        Raises Stopped, nothing changed, where a stop is asked for before the first update is applied; SettingsError where
        memory does not suffice for a single completion or, with divided layers, for a micro-batch.
        """
        optimizer = self.config.optimizer
        if not groups:
            return UpdateResult({"update/skipped": 1.0})
        filtering = self.config.algorithm.overlong_filtering
        rows = make_rows(groups, overlong_filtering=filtering, step=step, pad_id=self.policy.pad_id)
        if not rows.loss_mask.any():
            return UpdateResult({"update/skipped": 1.0})
        total, done = len(rows.lengths) * optimizer.epochs, 0
        self.microbatcher.progress(0, total)
        try:
            with loss_stops():
                batch, measured = self.targets.batch(groups, rows)
                vocabulary = self.targets.vocabulary_kl(rows)
        except NonFiniteError as error:
            return UpdateResult({"update/skipped": 1.0, "update/nonfinite": 1.0}, Fault(str(error), rows))
        trace = begin_trace(batch, self.config.log)
        parts = minibatches(batch.groups, count=optimizer.minibatches)
        updates: list[Metrics] = []
        fault: Fault | None = None
        for number in range(len(parts) * optimizer.epochs):
            chosen = parts[number % len(parts)]
            part = take(batch, chosen)
            shown = partial(self._show, done, total)
            done += len(part.lengths)
            if not part.loss_mask.any():
                updates.append({"update/skipped": 1.0})
                continue
            try:
                with loss_stops() if number == 0 else nullcontext():
                    updates.append(self._minibatch(part, vocabulary, step, number, trace.update(chosen, part), shown))
            except SpoiledWeightsError as error:
                spoiled = Fault(str(error), part, spoiled=True)
                return UpdateResult(measured | {"update/skipped": 0.0, "update/nonfinite": 1.0}, spoiled)
            except NonFiniteError as error:
                self.drop()
                fault = fault or Fault(str(error), part)
                updates.append({"update/skipped": 1.0, "update/nonfinite": 1.0})
        self.microbatcher.progress(total, total)
        return UpdateResult(measured | mean_of_updates(updates), fault, trace.joined(self.microbatcher.ranks).traced())

    def _show(self, before: int, total: int, done: int) -> None:
        """Tell of the rows of an update that are `done`, with those of the updates before it."""
        self.microbatcher.progress(before + done, total)

    def _minibatch(
        self,
        batch: Batch,
        vocabulary: VocabularyKl | None,
        step: int,
        number: int,
        trace: Trace,
        shown: Callable[[int], object],
    ) -> Metrics:
        """One optimizer update, number `number` of its step: gradient in micro-batches, clip, step.

        `shown` is told the rows whose gradient is there.
        No split into micro-batches changes the gradient by more than rounding. Raises NonFiniteError before a number that
        is not finite reaches the weights.
        """
        algorithm, check = self.config.algorithm, partial(self._check_stop, number)
        weights = token_weights(
            batch.loss_mask,
            batch.completion_mask,
            batch.groups,
            algorithm.aggregation,
            max_new_tokens=self.config.rollout.budget,
        )
        mask = self._gradient_mask(batch, may_stop=number == 0)
        with demand_memory(self.microbatcher.ranks, self.plan), self.optimizer.whole_afterwards():
            for attempt in self.microbatcher.attempts(batch):  # again with smaller micro-batches where memory runs out
                with attempt:
                    means = TokenMeans(first=number == 0)
                    parts = self.microbatcher.split(batch, trained_rows(batch, batch.advantages, algorithm))
                    done = 0
                    for chosen in self.microbatcher.own(batch, parts):
                        micro = take(batch, chosen)
                        width = micro.inputs.shape[1]
                        weight = weights[chosen, :width]
                        if algorithm.aggregation == "microbatch_token_mean":  # TRL's bnpo, which depends on the split
                            weight = micro.loss_mask / micro.loss_mask.sum() / len(parts)
                        loss = partial(self._loss, micro, weight, mask[chosen, :width], vocabulary)
                        loss = partial(loss, means, trace.part(chosen))
                        if self.layers is not None:
                            self.layers.add_gradient(loss, check, self._backward)
                        else:
                            check()
                            with checked(self.policy.model, check):
                                # No name for it: its graph would stay alive while a failed attempt is repeated.
                                self._backward(loss())
                        shown(done := done + len(chosen))
                    if self.layers is not None:
                        for chosen in self.microbatcher.extra(batch, parts):
                            nothing = self._nothing(take(batch, chosen), vocabulary, trace.part(chosen[:0]))
                            self.layers.add_gradient(nothing, check, self._backward)
                    if self.critic is not None:
                        self._critic_gradient(batch, number, means)
                if not attempt.fits:
                    self.drop()
            means.add_up(self.microbatcher.ranks)
            return means.result() | self._optimize(step, number)

    def _optimize(self, step: int, number: int) -> Metrics:
        """The steps of all optimizers with the gradients that are summed. Raises NonFiniteError."""
        norm, critic_norm = self._gradient_norms()
        with self.microbatcher.profiler.part("optimizer"):
            found = self.optimizer.step(self._rate(self.config.optimizer.peak_rate, step, number), norm)
            if self.critic is not None:
                rate = self._rate(self.critic.peak_rate, step, number)
                stepped = self.critic.optimizer.step(rate, critic_norm)
                found["critic/grad_norm"] = stepped.get("grad_norm", float("nan"))
        return found

    def _gradient_norms(self) -> tuple[float, float]:
        """The norms of the whole update's gradients, those of all ranks added up: the policy's, and the critic's or 0.

        Raises NonFiniteError.
        """
        for optimizer in self.optimizers:
            optimizer.add_up(self.microbatcher.ranks)
        norm, *critic = (optimizer.gradient_norm() for optimizer in self.optimizers)
        return norm, critic[0] if critic else 0.0

    def _loss(
        self,
        micro: Batch,
        weights: Tensor,
        gradient_mask: Tensor,
        vocabulary: VocabularyKl | None,
        means: TokenMeans,
        trace: Trace,
    ) -> Tensor:
        """The sum over tokens of weights * (gradient_mask * importance * surrogate + kl_coef * KL - entropy_coef * entropy).

        `micro` is one micro-batch; weights [B, L] are the token weights of the whole update, and gradient_mask [B, L] bool
        marks the tokens that have a surrogate. Raises NonFiniteError. docs/techniques.md has the formulas.
        """
        algorithm, device = self.config.algorithm, self.policy.device
        policy = self.policy if self.layers is None else self.layers.policy
        with self.microbatcher.profiler.part("forward"):
            logprobs, entropy, kl = self.microbatcher.statistics(
                policy, micro, vocabulary, with_entropy=algorithm.entropy_coef > 0, passes=3
            )
        batch, weights, gradient_mask = to_device(micro, device), weights.to(device), gradient_mask.to(device)
        old = self._old_logprobs(batch, logprobs, first=means.first)
        value = gradient_mask * surrogate(
            algorithm.surrogate, logprobs, old, batch.advantages, batch.loss_mask, self.options
        )
        if algorithm.importance != "off":
            value = value * batch.importance
        if algorithm.kl_coef and algorithm.kl_place == "loss":
            if vocabulary is None:
                kl = kl_penalty(algorithm.kl_estimator, logprobs, batch.reference_logprobs)
            value = value + algorithm.kl_coef * kl
        if algorithm.entropy_coef:
            value = value - algorithm.entropy_coef * entropy
        loss = (weights * value).sum()
        if not (torch.isfinite(loss) & torch.isfinite(logprobs).all()):  # one look from the host for both
            demand_finite("a log-probability", logprobs)
            raise NonFiniteError(f"the loss is {loss.item()}")
        means.most("update/microbatch_tokens", packed_tokens(micro))
        means.total("loss", loss.detach())
        self._measure(batch, logprobs.detach(), old, entropy.detach(), kl.detach(), means)
        share = trace.scale * weights * gradient_mask
        trace.keep(lambda: self._traced(batch, (logprobs.detach(), old, entropy.detach(), kl.detach()), share))
        return loss

    def _nothing(self, micro: Batch, vocabulary: VocabularyKl | None, untraced: Trace) -> Callable[[], Tensor]:
        """The loss of a micro-batch of weight 0, with which a rank passes through divided layers because others do."""
        blank = torch.zeros(micro.loss_mask.shape)
        return partial(self._loss, micro, blank, blank.bool(), vocabulary, TokenMeans(first=True), untraced)

    def _backward(self, loss: Tensor) -> None:
        with self.microbatcher.profiler.part("backward"):
            self.optimizer.backward(loss)

    def _old_logprobs(self, batch: Batch, logprobs: Tensor, *, first: bool) -> Tensor:
        """[B, L] nats of the policy that importance ratios are taken from.

        With one update per step it is the present policy, and the ratio is exactly 1; groups that were carried over from an
        earlier step keep their sampler's. The same holds in the `first` of several updates where `Targets` has left it out.
        """
        several = self.config.optimizer.minibatches * self.config.optimizer.epochs > 1
        if several and not (first and self.targets.first_is_its_own_old):
            return batch.old_logprobs
        return torch.where(batch.on_policy[:, None], logprobs.detach(), batch.old_logprobs)

    def _gradient_mask(self, batch: Batch, *, may_stop: bool) -> Tensor:
        """[B, L] bool: tokens with a surrogate; under entropy_share those of highest entropy over the whole update."""
        share = self.config.algorithm.entropy_share
        if share == 1:
            return batch.loss_mask
        entropies = self.microbatcher.entropies(self.policy, batch, may_stop=may_stop)
        return top_entropy_mask(entropies, batch.loss_mask, share)

    def _measure(
        self, batch: Batch, logprobs: Tensor, old: Tensor, entropy: Tensor, kl: Tensor, means: TokenMeans
    ) -> None:
        """Metrics of a micro-batch, [B, L] each. A ratio counts as clipped beyond a bound in the direction of its advantage."""
        algorithm, mask = self.config.algorithm, batch.loss_mask
        if algorithm.importance != "off":
            means.add("importance/mean", batch.importance, mask)
            means.maximum("importance/max", batch.importance, mask)
        if algorithm.kl_coef and algorithm.kl_place == "loss":
            means.add("kl", kl, mask)
        means.add("entropy", entropy, mask)
        if SURROGATES[algorithm.surrogate].clips:
            ratio = clipped_ratio(algorithm.surrogate, logprobs, old, mask)
            low = (ratio < 1 - algorithm.clip_low) & (batch.advantages < 0)
            high = (ratio > 1 + algorithm.clip_high) & (batch.advantages > 0)
            means.add("clip_ratio/low_mean", low, mask)
            means.add("clip_ratio/high_mean", high, mask)
            means.add("clip_ratio/region_mean", low | high, mask)
        if means.first:  # later updates compare another policy with the one that sampled
            gap, on_policy = (logprobs - batch.sampler_logprobs).abs(), mask & batch.on_policy[:, None]
            means.add("sampling/sampling_logp_difference/mean", gap, on_policy)
            means.maximum("sampling/sampling_logp_difference/max", gap, on_policy)

    def _traced(self, batch: Batch, found: tuple[Tensor, Tensor, Tensor, Tensor], weights: Tensor) -> Tensor:
        """[len(TRACED), B, L] float16 of a micro-batch: `found` are its log-probabilities, the old ones, entropies and KL."""
        algorithm, mask = self.config.algorithm, batch.loss_mask
        logprobs, old, entropy, kl = found
        surrogate = SURROGATES[algorithm.surrogate]
        ratio = clipped_ratio(algorithm.surrogate, logprobs, old, mask)
        if algorithm.kl_place == "reward":
            kl = logprobs - batch.reference_logprobs
        unknown = torch.full_like(logprobs, torch.nan)
        numbers = (
            batch.advantages,
            logprobs - batch.sampler_logprobs,
            ratio.log() if surrogate.ratio else unknown,
            is_clipped(algorithm.surrogate, ratio, batch.advantages, self.options) if surrogate.clips else unknown,
            entropy,
            kl if algorithm.kl_coef else unknown,
            weights * batch.importance,
        )
        kept = torch.stack([number.half() for number in numbers])
        known = mask.expand_as(kept).clone()
        known[0], known[-1] = batch.completion_mask, batch.completion_mask  # a token without loss has a weight of 0
        return kept.masked_fill(~known, torch.nan)

    def _critic_gradient(self, batch: Batch, number: int, means: TokenMeans) -> None:
        """The critic's gradient over the micro-batches of one update: a mean over the tokens that carry loss."""
        assert self.critic is not None
        total = batch.loss_mask.sum().clamp(min=1)
        parts = self.microbatcher.split(batch, batch.loss_mask.any(1).nonzero().squeeze(-1))
        for rows in self.microbatcher.own(batch, parts):
            self._check_stop(number)
            with checked(self.critic.critic.trunk, self.microbatcher.ranks.activity.tick):
                loss = self.critic.loss(take(batch, rows), total, self.plan.recompute)
                self.critic.optimizer.backward(loss)
            means.total("critic/loss", loss.detach())

    def _check_stop(self, number: int) -> None:
        """Raises Stopped before the first update of a step; once weights have moved, the step is completed."""
        self.microbatcher.ranks.activity.tick()
        if number == 0:
            self.microbatcher.stop.check()

    def _rate(self, peak: float, step: int, number: int) -> float:
        """Learning rate of update `number` of a step."""
        settings = self.config.optimizer
        updates_per_step = settings.minibatches * settings.epochs
        return learning_rate(
            step * updates_per_step + number,
            peak=peak,
            schedule=settings.schedule,
            warmup=settings.warmup_steps,
            total=self.config.steps * updates_per_step,
        )

    def drop(self) -> None:
        """Forget gradients that will not be used."""
        self.optimizer.drop()
        if self.critic is not None:
            self.critic.optimizer.drop()

    def keep_microbatches(self, tokens: int) -> None:
        """Use micro-batches of so many tokens, as before an interruption."""
        self.microbatcher.plan = replace(self.plan, microbatch_tokens=tokens)
