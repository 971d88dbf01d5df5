"""Everything that the loss of a step needs besides the policy, computed before any weight moves.

rows -> log-probabilities of the reference, values of the critic -> advantages -> old log-probabilities -> Batch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrl.algorithm.advantages import (
    SCALE_EPSILON,
    component_advantages,
    generalized_advantages,
    gpg_alpha,
    group_advantages,
)
from slimrl.algorithm.batch import (
    at_tokens,
    at_turn_ends,
    at_turns,
    components_of,
    from_turns_on,
    minibatches,
    returns_of,
    rewards_of,
    take,
    tensors_of,
)
from slimrl.algorithm.groups import SIGNAL_TOLERANCE
from slimrl.algorithm.kl import SAMPLED, Divergence, global_weights
from slimrl.algorithm.loss import importance_weights
from slimrl.algorithm.metrics import Metrics
from slimrl.config.algorithm import SURROGATES, AlgorithmConfig
from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError
from slimrl.learner.critic import CriticLearner
from slimrl.learner.forward import Microbatcher, VocabularyKl
from slimrl.model.policy import Policy
from slimrl.model.precision import is_narrow
from slimrl.records import Batch, Group, Rows


@dataclass(frozen=True)
class Targets:
    """The policy, the models that it is compared with, and the settings that say how: everything that makes a batch."""

    policy: Policy
    reference: Policy | None
    """The initial policy or a teacher, where there is a KL penalty."""
    critic: CriticLearner | None
    """PPO's value function, where the baseline is one."""
    microbatcher: Microbatcher
    config: TrainConfig
    reward_weights: Mapping[str, float]
    reference_in_use: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around the reference's pass."""
    exact_sampler: bool = True
    """`Sampler.exact`: the sampler is the trainer's own module, so in float32 its log-probabilities are the trainer's."""

    def batch(self, groups: Sequence[Group], rows: Rows) -> tuple[Batch, Metrics]:
        """The complete batch of a step, and metrics of its advantages; `rows` are those of `groups`.

        Raises NonFiniteError, naming the number, and Stopped between micro-batches.
        """
        timed = self.microbatcher.profiler.part
        demand_finite("a log-probability of the sampler", rows.sampler_logprobs)
        with timed("reference"):
            reference, log_ratio = self._reference(rows)
        means: Metrics = {}
        if self.config.algorithm.kl_coef and self.config.algorithm.kl_place == "reward":
            means["kl"] = float(log_ratio.sum() / rows.completion_mask.sum())
        values, returns = torch.zeros_like(log_ratio), torch.zeros_like(log_ratio)
        if self.critic is not None:
            with timed("reference"):
                values = self.critic.values(rows, self.microbatcher)
            demand_finite("a value of the critic", values)
            advantages, returns, measured = self.critic_advantages(groups, rows, values, log_ratio)
        else:
            advantages, measured = self._advantages(groups, rows, log_ratio)
        demand_finite("an advantage", advantages)
        with timed("reference"):
            old, importance = self._old(rows, advantages)
        batch = Batch(
            **tensors_of(rows),
            advantages=advantages,
            old_logprobs=old,
            reference_logprobs=reference,
            importance=importance,
            values=values,
            returns=returns,
        )
        return batch, means | measured

    def vocabulary_kl(self, rows: Rows) -> VocabularyKl | None:
        """The divergence over the whole vocabulary, where the loss has one; global weights are a mean over these rows."""
        algorithm = self.config.algorithm
        if self.reference is None or not self._has_vocabulary_kl:
            return None
        gkl, prior = algorithm.gkl, None
        if algorithm.kl_estimator == "gkl" and gkl.weights == "global":
            with self.microbatcher.profiler.part("reference"):
                prior = global_weights(self.microbatcher.mean_probabilities(self.reference, rows), gkl.gamma)
        parts = Divergence(algorithm.kl_estimator, gkl.mse, gkl.cross_entropy, gkl.weights, gkl.gamma, prior)
        return VocabularyKl(self.reference, parts)

    @property
    def _has_vocabulary_kl(self) -> bool:
        return self.config.algorithm.kl_coef > 0 and self.config.algorithm.kl_estimator not in SAMPLED

    @property
    def _differs(self) -> bool:
        """True where sampler and trainer give a token log-probabilities that differ by more than float32 rounding.

        In a narrower type a decode step and a packed row round differently, by more than GSPO's clip is wide.
        """
        return not self.exact_sampler or is_narrow(self.policy.model)

    @property
    def _recomputes_old(self) -> bool:
        """True where the trainer computes the old log-probabilities again instead of taking the sampler's.

        With one update per batch the ratio is 1 by construction, and surrogates without a ratio have no use for them.
        """
        several = self.config.optimizer.minibatches * self.config.optimizer.epochs > 1
        has_ratio = SURROGATES[self.config.algorithm.surrogate].ratio
        return self.config.algorithm.importance != "off" or (several and has_ratio and self._differs)

    @property
    def first_is_its_own_old(self) -> bool:
        """True where the first update of a step takes its own log-probabilities for old, which are the same to the last bit, so
        that nobody computes them before. Later epochs, and an importance correction, need them by then.
        """
        once = self.config.optimizer.epochs == 1 and self.config.algorithm.importance == "off"
        return once and self._recomputes_old

    def _reference(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """[B, L] nats each: the reference's log-probabilities, and the log-ratio that a penalty in the reward is made of.

        In a narrow type both sides of the ratio are the trainer's, since a decode step rounds differently, by some hundredths
        of a nat per token, which would be a reward for nothing.
        """
        algorithm, sampler = self.config.algorithm, rows.sampler_logprobs
        if self.reference is None or algorithm.kl_estimator not in SAMPLED:
            return torch.zeros_like(sampler), torch.zeros_like(sampler)
        # A penalty in the reward is one on every completion, also on those that carry no loss.
        in_reward = algorithm.kl_place == "reward"
        mask = rows.completion_mask if in_reward else rows.loss_mask
        with self.reference_in_use():
            reference = self.microbatcher.logprobs(self.reference, rows, mask)
        demand_finite("a log-probability of the reference", reference)
        if not in_reward:
            return reference, torch.zeros_like(sampler)
        if self._differs:
            recomputed = self.microbatcher.logprobs(self.policy, rows, mask)
            demand_finite("a recomputed log-probability", recomputed)
            # Groups that were carried over were sampled by an earlier policy.
            sampler = torch.where(rows.on_policy[:, None], recomputed, sampler)
        return reference, (sampler - reference) * rows.completion_mask

    def _old(self, rows: Rows, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L] each: old log-probabilities in nats, and the factors of the importance correction.

        Groups that were carried over keep the log-probabilities of the earlier policy that sampled them.
        """
        algorithm, sampler = self.config.algorithm, rows.sampler_logprobs
        if not self._recomputes_old:
            return sampler, torch.ones_like(sampler)
        recomputed = self._as_updates_compute(rows, advantages)
        demand_finite("a recomputed log-probability", recomputed)
        old = torch.where(rows.on_policy[:, None], recomputed, sampler)
        if algorithm.importance == "off":
            return old, torch.ones_like(sampler)
        return old, importance_weights(
            old,
            sampler,
            rows.loss_mask,
            level=algorithm.importance_level,
            correction=algorithm.importance,
            cap=algorithm.importance_cap,
        )

    def _as_updates_compute(self, rows: Rows, advantages: Tensor) -> Tensor:
        """[B, L] nats of the policy as it is, in the minibatches, rows and micro-batches of the updates that follow, and the
        sampler's where no update computes a row, or none but the first and `first_is_its_own_old`.

        Equal shapes and the same functions give equal rounding, so ratios are exactly 1 until a weight has moved. Gradients
        stay enabled, though none is taken, since torch chooses attention kernels by that.
        """
        computed = torch.zeros_like(rows.sampler_logprobs)
        done = torch.zeros(len(rows.lengths))
        # With a divergence over the vocabulary the update takes the same path through the head as with an entropy.
        with_entropy = self.config.algorithm.entropy_coef > 0 or self._has_vocabulary_kl
        for attempt in self.microbatcher.attempts(rows):
            with attempt:
                parts = minibatches(rows.groups, count=self.config.optimizer.minibatches)
                for chosen in parts[self.first_is_its_own_old :]:
                    part = take(rows, chosen)
                    trained = trained_rows(part, advantages[chosen], self.config.algorithm)
                    for inside in self.microbatcher.own(part, self.microbatcher.split(part, trained)):
                        self.microbatcher.stop.check()
                        micro = take(part, inside)
                        # Detached at once: a graph that is alive would stand in the way of the next attempt.
                        found = self.microbatcher.statistics(
                            self.policy, micro, with_entropy=with_entropy, measured=False
                        )
                        logprobs = found[0].detach()
                        computed[chosen[inside], : logprobs.shape[1]] = logprobs.cpu()
                        done[chosen[inside]] = 1
        self.microbatcher.ranks.add([computed, done])
        return torch.where(done[:, None] > 0, computed, rows.sampler_logprobs)

    def _advantages(self, groups: Sequence[Group], rows: Rows, log_ratio: Tensor) -> tuple[Tensor, Metrics]:
        """Advantages [B, L], by the baseline, the scale and the credit that the settings name.

        `log_ratio` [B, L] is the KL penalty in the reward, before its coefficient; 0 without one.
        """
        algorithm, mask = self.config.algorithm, rows.completion_mask
        assert algorithm.baseline != "critic"
        by_turn = algorithm.credit == "turn"
        rewards, scorable = returns_of(groups) if by_turn else rewards_of(groups)
        alpha = gpg_alpha(rewards, scorable, tolerance=SIGNAL_TOLERANCE)  # before any penalty
        if algorithm.kl_place == "reward":
            penalty = log_ratio.sum(1).double()
            if by_turn:
                penalty = from_turns_on(log_ratio, mask, groups=len(groups), turns=rewards.shape[1])
            rewards = rewards - algorithm.kl_coef * penalty.view_as(rewards)
        if algorithm.normalize_components:
            found = component_advantages(components_of(groups), self.reward_weights, scorable, algorithm.baseline)
        else:
            found = group_advantages(rewards, scorable, algorithm.scale_rewards, algorithm.baseline)
        metrics: Metrics = {"gpg_alpha": alpha} if algorithm.surrogate == "gpg" else {}
        if algorithm.surrogate == "gpg":
            found = alpha * found
        return at_turns(found, mask) if by_turn else at_tokens(found, mask), metrics

    def critic_advantages(
        self, groups: Sequence[Group], rows: Rows, values: Tensor, log_ratio: Tensor
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Advantages and returns [B, L] with a critic's values [B, L], and metrics of the values.

        A completion's reward comes with its last token or, with credit by turn, that of each turn with the turn's; a KL penalty
        in the reward with each token.
        """
        settings, algorithm = self.config.critic, self.config.algorithm
        mask, carried = rows.completion_mask, rows.loss_mask
        if algorithm.credit == "turn":
            returns_to_go, _ = returns_of(groups)
            later = torch.nn.functional.pad(returns_to_go[:, 1:], (0, 0, 0, 1))
            paid = at_turn_ends(returns_to_go - later, mask)
        else:
            last = torch.arange(mask.shape[1])[None] == rows.lengths[:, None] - 1
            paid = rewards_of(groups)[0].reshape(-1, 1).float() * last
        if algorithm.kl_place == "reward":
            paid = paid - algorithm.kl_coef * log_ratio
        advantages, returns = generalized_advantages(
            paid, values, mask, discount=settings.discount, gae_lambda=settings.gae_lambda
        )
        errors = (returns - values)[carried]
        spread = returns[carried].var(correction=0)
        means = {
            "critic/value_mean": float(values[carried].mean()),
            "critic/explained_variance": float(1 - errors.var(correction=0) / spread) if spread > 0 else 0.0,
        }
        if settings.whiten and carried.sum() > 1:
            centred = advantages - advantages[carried].mean()
            advantages = torch.where(mask, centred / (advantages[carried].std() + SCALE_EPSILON), 0.0)
        return advantages, returns, means


def trained_rows(rows: Rows, advantages: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """[n] rows that can have a gradient: those with loss and, without a KL or entropy term, with an advantage.

    Weights count every row whether it is computed or not, so leaving out what is 0 changes nothing. One row stays, because
    an optimizer that sees a gradient of 0 continues by its momentum, and one that sees none does not.
    """
    wanted = rows.loss_mask.any(1)
    other_terms = (algorithm.kl_coef and algorithm.kl_place == "loss") or algorithm.entropy_coef
    if not other_terms and algorithm.aggregation != "microbatch_token_mean":
        moving = wanted & (advantages != 0).any(1)
        wanted = moving if moving.any() else wanted & (wanted.cumsum(0) == 1)
    return wanted.nonzero().squeeze(-1)


def demand_finite(what: str, numbers: Tensor) -> None:
    """Raises NonFiniteError."""
    if not torch.isfinite(numbers).all():
        raise NonFiniteError(f"{what} is not finite")
