"""The settings of the policy gradient, with the parts of the generalized KL divergence and the critic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from slimrl import terms
from slimrl.config.base import Needs, NonNegative, Positive, Section


@dataclass(frozen=True)
class Surrogate:
    """Properties of a surrogate, on which refusals, effects and the old log-probabilities depend."""

    ratio: bool = True
    """It takes an importance ratio."""
    clips: bool = False
    """`clip_low` and `clip_high` bound its ratio."""
    plain_at_one: bool = True
    """Its gradient is that of `reinforce` where every ratio is 1."""


SURROGATES: Mapping[str, Surrogate] = {
    "clip": Surrogate(clips=True),
    "reinforce": Surrogate(ratio=False),
    "gpg": Surrogate(ratio=False, plain_at_one=False),
    "cispo": Surrogate(clips=True),
    "gspo": Surrogate(clips=True),
    "gspo_token": Surrogate(clips=True),
    "sapo": Surrogate(),
}
"""The surrogates by name; slimrl/algorithm/loss.py has their functions."""
CLIPPING = tuple(name for name, surrogate in SURROGATES.items() if surrogate.clips)


class GklConfig(Section):
    """The parts of the generalized KL divergence (arXiv:2503.08038), for algorithm.kl_estimator=gkl."""

    mse: NonNegative = 1.0
    """Factor of half the weighted variance of the log-ratio."""
    cross_entropy: NonNegative = 1.0
    """Factor of the cross-entropy with the reference as soft labels."""
    weights: terms.GklWeights = "policy"
    """Of the variance: the policy's probabilities, the reference's, or the reference's mean over the step's tokens."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Exponent of reference and global weights; below 1 they are smoother."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        if not self.mse and not self.cross_entropy:
            raise ValueError("algorithm.gkl.mse=0 and cross_entropy=0 leave nothing; set one of them")
        if self.gamma != 1 and (self.weights == "policy" or not self.mse):
            raise ValueError("algorithm.gkl.gamma acts on reference and global weights of the variance; remove it")
        if self.weights != "policy" and not self.mse:
            raise ValueError("algorithm.gkl.weights has no effect with algorithm.gkl.mse=0; remove it")
        return self


class AlgorithmConfig(Section):
    prefix = "algorithm"

    baseline: terms.Baseline = "group_mean"
    """The value that a reward is compared with: the group's mean, the mean of its others (RLOO), nothing, or a critic (PPO)."""
    scale_rewards: terms.Scale = "group"
    """Advantages are divided by the group's or the batch's standard deviation (+1e-4), by nothing (Dr. GRPO), or by the
    group's mean reward (MaxRL)."""
    credit: terms.Credit = "episode"
    """The tokens of an episode have one advantage, of its whole reward; or those of each turn have their own, of what was earned
    in this turn or later (docs/environments.md)."""
    normalize_components: bool = False
    """Each reward is normalised within its group before they are summed, then the sum over the batch (GDPO)."""
    surrogate: Literal[*SURROGATES] = "clip"  # type: ignore[valid-type]
    """The function of log-probabilities and advantages that is differentiated; docs/techniques.md has the equations."""
    clip_low: Annotated[float, Field(ge=0, le=1), Needs("surrogate", *CLIPPING)] = 0.2
    """The importance ratio is clipped at 1 - clip_low."""
    clip_high: Annotated[NonNegative, Needs("surrogate", *CLIPPING)] = 0.2
    """The importance ratio is clipped at 1 + clip_high; DAPO's clip-higher is 0.28."""
    dual_clip: Annotated[NonNegative, Needs("surrogate", "clip")] = 0.0
    """Largest cost of a token with a negative advantage, in multiples of the advantage (3 is usual); 0: no bound."""
    sapo_up: Annotated[Positive, Needs("surrogate", "sapo")] = 1.0
    """Temperature of SAPO's gate where the advantage is positive."""
    sapo_down: Annotated[Positive, Needs("surrogate", "sapo")] = 1.05
    """Temperature of SAPO's gate elsewhere."""
    aggregation: terms.Aggregation = "sequence_mean"
    """GRPO, DAPO over the batch, DAPO's equation to the letter, Dr. GRPO; the last one only replicates TRL's bnpo."""
    kl_coef: NonNegative = 0.04
    """Weight of the KL penalty to the reference; 0 loads no reference at all."""
    reference: Annotated[str, Needs("kl_coef")] = ""
    """Folder or Hub name of another model with the same vocabulary, a teacher; empty: the initial policy. With every reward at
    weight 0 and kl_estimator=reverse this is on-policy distillation (arXiv:2306.13649)."""
    kl_estimator: Annotated[terms.KlEstimator, Needs("kl_coef")] = "k3"
    """Of the sampled token (Schulman 2020), or exact over the whole vocabulary: KL either way, or the generalized KL."""
    kl_place: Annotated[Literal["loss", "reward"], Needs("kl_coef")] = "loss"
    """A term of the loss, or subtracted from the reward (k1 of the sampled tokens)."""
    gkl: Annotated[GklConfig, Needs("kl_estimator", "gkl")] = GklConfig()
    """Parts of the generalized KL."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy, which is raised."""
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only this share of the tokens, those of highest entropy, carries the policy gradient (arXiv:2506.01939)."""
    importance: terms.Importance = "off"
    """Correction for a sampler whose log-probabilities differ from the trainer's: weights up to importance_cap, or none
    outside of it."""
    importance_level: Annotated[terms.ImportanceLevel, Needs("importance", *get_args(terms.Correction))] = "token"
    """One weight for each token, or one for a whole completion."""
    importance_cap: Annotated[float, Field(gt=1), Needs("importance", *get_args(terms.Correction))] = 2.0
    """Largest weight; `mask` also drops those below its inverse."""
    overlong_filtering: bool = False
    """Truncated completions carry no loss; they still count in their group's baseline and in denominators."""
    dynamic_sampling: terms.Selection = "off"
    """Groups without a signal: kept, dropped, replaced by groups of further problems (DAPO), or by copies of groups that
    have one (POLARIS)."""
    signal: Annotated[terms.Signal, Needs("dynamic_sampling", "filter", "refill", "replace")] = "correct"
    """The quantity that must differ in a group: correctness (DAPO's own) or reward (by more than 1e-6)."""
    refill_budget: Annotated[float, Field(ge=1), Needs("dynamic_sampling", "refill")] = 3.0
    """Completions sampled for one step at most, in multiples of problems x group_size; then it trains on what it has."""
    refill_share: Annotated[float, Field(gt=0, le=1), Needs("dynamic_sampling", "refill")] = 1.0
    """Refill until this share of the groups carries a signal and keep the rest as they are (GPG's threshold)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        grouped = self.baseline in ("group_mean", "leave_one_out")
        token_weighed = self.importance != "off" and self.importance_level == "token"
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"algorithm.dual_clip={self.dual_clip} would cut what is not clipped; set more than 1, or 0"
            )
        if self.kl_place == "reward" and self.scale_rewards not in ("none", "batch"):
            raise ValueError(
                f"algorithm.kl_place=reward with scale_rewards={self.scale_rewards} would blow up the penalty where all rewards "
                "of a group are equal; set algorithm.scale_rewards=none or batch"
            )
        if self.surrogate == "gpg" and not grouped:
            raise ValueError(
                "algorithm.surrogate=gpg scales by the groups whose advantages are all 0, which needs "
                "algorithm.baseline=group_mean or leave_one_out"
            )
        by_turn = self.credit == "turn"
        if self.surrogate == "gspo" and (
            self.entropy_share < 1 or self.baseline == "critic" or token_weighed or by_turn
        ):
            raise ValueError(
                "algorithm.surrogate=gspo gives every token of a completion one gradient, so nothing can weigh single tokens "
                "(entropy_share, a critic, importance_level=token, credit=turn); set algorithm.surrogate=gspo_token"
            )
        if by_turn and self.normalize_components:
            raise ValueError(
                "algorithm.normalize_components normalises the rewards of whole episodes, and algorithm.credit=turn takes them "
                "apart by turn; set one"
            )
        if self.kl_place == "reward" and self.kl_estimator != "k1":
            raise ValueError("algorithm.kl_place=reward subtracts k1; set algorithm.kl_estimator=k1")
        if self.normalize_components and (self.scale_rewards != "group" or not grouped):
            raise ValueError(
                "algorithm.normalize_components divides each reward by its group's spread; leave scale_rewards=group and "
                "baseline=group_mean or leave_one_out"
            )
        if self.normalize_components and self.kl_coef and self.kl_place == "reward":
            raise ValueError(
                "algorithm.normalize_components takes rewards apart, and kl_place=reward adds to their sum; set one"
            )
        if self.baseline == "critic" and self.scale_rewards != "none":
            raise ValueError("algorithm.baseline=critic knows no groups; set algorithm.scale_rewards=none")
        return self


class CriticConfig(Section):
    """PPO's value function, for algorithm.baseline=critic."""

    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak rate of the critic's own AdamW; `auto`: five times the policy's."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of later rewards (gamma)."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of longer returns in the advantage; 1 (as verl) is the return less the value. 0.95 (as TRL) lets a reward at the
    end reach only about the last 90 tokens until the critic has learned."""
    value_clip: Positive = 0.2
    """A value may leave that of the rollout by no more than this without paying for it."""
    whiten: bool = True
    """Advantages are centred and scaled over the tokens of a step."""
