"""The catalogue of effects: each rule on when a setting cannot act, acts as something else, or changes more than it names.

`RUN_RULES` judge one run by its settings and by what was sampled: doctor, run summary and study plan read them. `ARM_RULES`
judge an arm of a study by its settings and its reference's: study plan and report read them. A setting that has no effect
under the value of another one of its section is refused before that, by the `Needs` at its field (`slimrl/config/base.py`).

This module imports no torch, so that a study can be planned without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from slimrl.config.algorithm import SURROGATES, AlgorithmConfig
from slimrl.config.base import Needs
from slimrl.config.schema import TrainConfig
from slimrl.config.task import EVERY_RATE
from slimrl.preflight.facts import (
    SPEED_ONLY,
    SPLIT_ONLY,
    Pair,
    Run,
    changed_settings,
    kl_in_loss,
    one_update,
    refills,
    split_matters,
)
from slimrl.preflight.observed import Observed

EARLIEST = 3
"""Steps after which something that held in all of them is worth saying."""
NEVER_CLIPS = 1e6
"""optimizer.max_grad_norm from which on no gradient is scaled down."""
WITHOUT_RATIO = tuple(name for name, surrogate in SURROGATES.items() if not surrogate.ratio)
"""Surrogates that take no importance ratio."""
ON_RATIOS = [
    key
    for key, needs in AlgorithmConfig.marked(Needs).items()
    if needs.setting == "surrogate" and not {*needs.values} <= {*WITHOUT_RATIO}
]
"""The parameters of surrogates, which do nothing where every importance ratio is 1."""


Facts = TypeVar("Facts", Run, Pair)


@dataclass(frozen=True)
class Rule(Generic[Facts]):
    """A row of the catalogue; in its texts `{facts...}` is filled in."""

    kind: Literal["inert", "confounded", "reward"]
    """Cannot act, or cannot differ from its reference; acts, but on more than it names; gives the training reward another
    meaning."""
    settings: str
    """The settings concerned: `algorithm.clip_low and clip_high`, one without a section, or the name of a section."""
    sentence: str
    when: Callable[[Facts], object] = lambda _: True
    """True of the facts to which the rule applies; one on an arm applies only where it changes one of the settings."""

    def text(self, facts: Facts) -> str:
        return self.sentence.format(facts=facts)

    def named_text(self, facts: Facts) -> str:
        """The sentence after the names of its settings, as runs have it."""
        return f"{self.settings}: {self.sentence}".format(facts=facts)

    def concerns(self, key: str) -> bool:
        """True of the dotted key of one of the settings."""
        section, _, names = self.settings.partition(".")
        if not names:
            return key.partition(".")[0] == section
        return key.startswith(f"{section}.") and key.rpartition(".")[2] in WORD.findall(names)


WORD = re.compile(r"\w+")
RATIO_IS_ONE = "with one optimizer update per rollout batch every importance ratio is exactly 1, so "
LETS_THEM_ACT = "{facts.carried_over}; optimizer.minibatches=2 lets them act"
K1_IS_FLAT = "the gradient of k1 in the loss is 0 on average"
AGAINST_KL = "and algorithm.kl_coef={facts.algorithm.kl_coef:g} weighs the more or the less against them"
NO_RATIO = "{facts.algorithm.surrogate} takes no importance ratio, and "
NONE_TRUNCATED = "none of {facts.observed.completions} completions was truncated"
LAST_BITS = "changes speed and memory, and numbers in their last bits only"
UNDONE_BY_ADAMW = (
    ", which AdamW undoes but optimizer.max_grad_norm does not: where it clips one arm and not the other, that is a difference "
    "too (grad_norm in metrics.jsonl)"
)

RUN_RULES: tuple[Rule[Run], ...] = (
    Rule("inert", "algorithm.clip_low and clip_high", f"{RATIO_IS_ONE}nothing is clipped{LETS_THEM_ACT}",
         lambda run: run.ratio_is_one and run.algorithm.surrogate == "clip"),
    Rule("inert", "algorithm.dual_clip", f"{RATIO_IS_ONE}nothing is bounded{LETS_THEM_ACT}",
         lambda run: run.ratio_is_one and run.algorithm.dual_clip),
    Rule("inert", "algorithm.surrogate, clip and gate of {facts.algorithm.surrogate}",
         f"{RATIO_IS_ONE}its gradient is that of reinforce{LETS_THEM_ACT}",
         lambda run: run.ratio_is_one and run.algorithm.surrogate != "clip"
         and run.surrogate.ratio and run.surrogate.plain_at_one),
    Rule("inert", "algorithm.clip_low and clip_high",
         "no importance ratio lay beyond them in {facts.observed.steps} steps",
         lambda run: run.algorithm.surrogate in ("clip", "gspo", "gspo_token") and not run.on_policy
         and run.observed.steps >= EARLIEST and not run.observed.bounded),
    Rule("inert", "algorithm.baseline", "{facts.leave_one_out}, a constant factor, which AdamW divides out",
         lambda run: run.constant_leave_one_out and not run.penalty_and_rewards),
    Rule("inert", "algorithm.credit", "none of {facts.observed.completions} episodes has a second turn",
         lambda run: run.by_turn and run.observed.completions and run.observed.turns < 2),
    Rule("inert", "algorithm.credit", "{facts.no_turn_paid}, and nothing else depends on the turn",
         lambda run: run.no_turn_paid and not run.compares_turns),
    Rule("inert", "algorithm.overlong_filtering", NONE_TRUNCATED,
         lambda run: run.algorithm.overlong_filtering and not run.observed.truncated),
    Rule("inert", "rewards.zero_truncated", NONE_TRUNCATED,
         lambda run: run.config.rewards.zero_truncated and not run.observed.truncated),
    Rule("inert", "rewards.soft_overlong",
         "it begins above {facts.free_tokens} tokens and the longest of {facts.observed.completions} completions has "
         "{facts.observed.longest}",
         lambda run: run.config.rewards.soft_overlong and run.observed.longest <= run.free_tokens),
    Rule("inert", "algorithm.dynamic_sampling", "every one of {facts.observed.groups} groups carries a signal",
         lambda run: run.algorithm.dynamic_sampling != "off" and not run.observed.constant),
    Rule("inert", "algorithm.aggregation",
         "all completions have {facts.observed.longest} tokens, so every choice is the same up to scale",
         lambda run: run.algorithm.aggregation != "sequence_mean" and run.observed.completions
         and run.observed.longest == run.observed.shortest),
    Rule("inert", "algorithm.importance",
         "sampler and trainer gave the same log-probabilities in all of {facts.observed.steps} steps",
         lambda run: run.algorithm.importance != "off" and run.observed.steps and not run.observed.corrected),
    Rule("inert", "algorithm.surrogate",
         "GPG's alpha was {facts.alpha:g} in all of {facts.observed.steps} steps, and AdamW divides a constant factor out",
         lambda run: run.algorithm.surrogate == "gpg" and run.observed.steps >= EARLIEST
         and len(run.observed.alphas) == 1),
    Rule("inert", "algorithm.normalize_components",
         "only {facts.config.rewards.paid[0]} is paid, so there is nothing to weigh",
         lambda run: run.algorithm.normalize_components and len(run.config.rewards.paid) == 1),
    Rule("inert", "task.rates",
         "with task.success_rate=[0, 1] and curriculum.order=shuffled it neither chooses nor orders problems, and only leaves "
         "out those without a rate",
         lambda run: run.config.task.rates and run.config.task.success_rate == EVERY_RATE
         and run.config.curriculum.order == "shuffled"),
    Rule("confounded", "algorithm.kl_estimator", f"{K1_IS_FLAT}, so the penalty pulls nowhere",
         lambda run: kl_in_loss(run.algorithm) and run.algorithm.kl_estimator == "k1"),
    Rule("confounded", "algorithm.normalize_components", f"advantages have another size, {AGAINST_KL}",
         lambda run: kl_in_loss(run.algorithm) and run.algorithm.normalize_components),
    Rule("confounded", "algorithm.scale_rewards",
         f"with {{facts.algorithm.scale_rewards}} advantages have another size than with group, {AGAINST_KL}",
         lambda run: kl_in_loss(run.algorithm) and run.algorithm.scale_rewards != "group"),
    Rule("confounded", "optimizer.max_grad_norm",
         "every update of all {facts.observed.steps} steps was scaled down to {facts.config.optimizer.max_grad_norm:g}, so "
         "what changes the gradient's size (aggregation, scale_rewards, GPG's alpha) changes nothing",
         lambda run: run.observed.steps >= EARLIEST and run.observed.clipped == run.observed.steps),
    Rule("confounded", "algorithm.surrogate",
         f"{NO_RATIO}all but the first of a batch's updates learn from what another policy sampled",
         lambda run: run.algorithm.surrogate in WITHOUT_RATIO and not one_update(run.config)),
    Rule("confounded", "algorithm.surrogate",
         f"{NO_RATIO}{{facts.observed.carried}} carried groups were learned from what another policy sampled",
         lambda run: run.algorithm.surrogate in WITHOUT_RATIO and one_update(run.config) and run.observed.carried),
    Rule("confounded", "algorithm.baseline",
         "{facts.leave_one_out}, so next to the penalty it only weighs rewards more",
         lambda run: run.constant_leave_one_out and run.penalty_and_rewards),
    Rule("confounded", "algorithm.credit",
         "{facts.no_turn_paid}, so it only compares them at each turn with the completions that have this turn",
         lambda run: run.no_turn_paid and run.compares_turns),
)  # fmt: skip

ARM_RULES: tuple[Rule[Pair], ...] = (
    Rule("inert", f"algorithm.{' and '.join(ON_RATIOS)}",
         "acts on importance ratios, and with one update per rollout batch every one is exactly 1",
         lambda pair: pair.ratio_is_one),
    Rule("inert", "algorithm.surrogate",
         "makes no difference with one update per rollout batch, where every surrogate has the gradient of reinforce",
         lambda pair: pair.ratio_is_one and all(SURROGATES[c.algorithm.surrogate].plain_at_one for c in pair.both)),
    Rule("inert", "algorithm.signal", "makes no difference where the reward is correctness alone",
         lambda pair: all(c.rewards.paid == ("correct",) and not c.rewards.zero_truncated for c in pair.both)),
    *(Rule[Pair]("inert", key, LAST_BITS) for key in SPEED_ONLY),
    Rule("inert", "rewards.watched", "only measures", lambda pair: pair.changed == ["rewards.watched"]),
    *(Rule[Pair]("inert", key, LAST_BITS, lambda pair: not any(map(split_matters, pair.both))) for key in SPLIT_ONLY),
    Rule("confounded", "algorithm.scale_rewards and normalize_components",
         "advantages change their scale and algorithm.kl_coef does not, so the weight of the KL penalty against the reward "
         "changes too; compare without KL, or scale kl_coef along",
         lambda pair: pair.kl),
    Rule("confounded", "algorithm.scale_rewards", f"advantages change their scale{UNDONE_BY_ADAMW}",
         lambda pair: pair.arm.optimizer.max_grad_norm < NEVER_CLIPS),
    Rule("confounded", "algorithm.credit",
         "no turn is paid with rewards.environment=0, so turns differ only in the completions that they are compared with",
         lambda pair: not any(config.rewards.environment for config in pair.both)),
    Rule("confounded", "algorithm.aggregation",
         f"fixed_length divides by rollout.max_new_tokens instead of the tokens there are{UNDONE_BY_ADAMW}",
         lambda pair: pair.fixed_length),
    Rule("confounded", "algorithm.aggregation",
         "the KL penalty is aggregated in the same way, so its weight per token changes along",
         lambda pair: pair.fixed_length and pair.kl),
    Rule("confounded", "rewards.correct and format", "the reward changes its scale and algorithm.kl_coef does not",
         lambda pair: pair.kl and pair.arm.algorithm.scale_rewards == "none"),
    Rule("confounded", "optimizer.minibatches and epochs",
         "it takes another number of optimizer updates on the same rollouts"),
    Rule("confounded", "rollout.max_new_tokens",
         "evaluation uses rollout.max_new_tokens too, so the measure changes with the training"),
    Rule("confounded", "rollout.temperature",
         "evaluation uses rollout.temperature too, so the measure changes with the training"),
    Rule("confounded", "rollout.problems and group_size",
         "it samples another number of completions a step; see budget.equal=tokens"),
    Rule("confounded", "model",
         "optimizer.learning_rate=auto takes another rate for it, so two things change; set the rate of both",
         lambda pair: {"model.path", "model.lora.rank"} & {*pair.changed}
         and any(config.optimizer.learning_rate == "auto" for config in pair.both)),
    Rule("confounded", "steps", "it takes another number of steps than its reference"),
    Rule("confounded", "algorithm.dynamic_sampling",
         "at equal steps {facts.dearer} may sample up to {facts.refill_budget:g} times the tokens; budget.equal=tokens compares "
         "at equal cost",
         lambda pair: any(map(refills, pair.both)) and not pair.arm.max_tokens),
    Rule("confounded", "algorithm.kl_estimator", f"{K1_IS_FLAT}, so with it the KL penalty pulls nowhere",
         lambda pair: any(kl_in_loss(c.algorithm) and c.algorithm.kl_estimator == "k1" for c in pair.both)),
    Rule("reward", "rewards", "what is paid changes, so training rewards are not comparable",
         lambda pair: pair.reference.rewards.payment != pair.arm.rewards.payment),
    Rule("reward", "task.answers", "other answers count as right in training, so training rewards are not comparable"),
    Rule("reward", "curriculum",
         "what it is asked is chosen by difficulty or success, so training rewards are not comparable"),
    Rule("reward", "task.rates and success_rate",
         "what it is asked is chosen by success rates, so training rewards are not comparable"),
    Rule("reward", "algorithm.dynamic_sampling and signal",
         "what it trains on is selected by reward, so train/reward is not comparable"),
)  # fmt: skip


def inert_switches(config: TrainConfig, observed: Observed) -> list[str]:
    """Sentences on the settings that cannot have changed anything in a run."""
    return _sentences("inert", Run(config, observed))


def confounded_switches(config: TrainConfig, observed: Observed) -> list[str]:
    """Sentences on the settings that act in a run, but also in another way than they say."""
    return _sentences("confounded", Run(config, observed))


def _sentences(kind: str, run: Run) -> list[str]:
    return [rule.named_text(run) for rule in RUN_RULES if rule.kind == kind and rule.when(run)]


def set_by_hand(sentences: Sequence[str], config: TrainConfig) -> list[str]:
    """Those of the sentences on a run about a setting that somebody chose: it is not the default, or was given as it.

    A section in which every setting is given was written by a run, and does not show what was chosen.
    """

    def is_chosen(sentence: str) -> bool:
        section = getattr(config, sentence.partition(".")[0])
        fields, given = type(section).model_fields, section.model_fields_set
        by_hand = set() if given == {*fields} else given
        keys = [key for key in _named(sentence) if key in fields]
        return any(key in by_hand or getattr(section, key) != fields[key].default for key in keys)

    return [*filter(is_chosen, sentences)]


def _named(sentence: str) -> list[str]:
    """The words before the colon of a sentence on a run, among them the names of its settings."""
    return WORD.findall(sentence.partition(":")[0])


def concerning(sentences: Sequence[str], reference: TrainConfig, arm: TrainConfig) -> list[str]:
    """Those of the sentences on a run that are about a setting which an arm changes."""
    changed = {key.rpartition(".")[2] for key in changed_settings(reference, arm)}
    return [sentence for sentence in sentences if not changed.isdisjoint(_named(sentence))]


@dataclass(frozen=True)
class Remark:
    """A fact to know about an arm before it runs."""

    kind: Literal["inert", "confounded", "reward"]
    """As of a rule."""
    text: str


def remarks(reference: TrainConfig, arm: TrainConfig, name: str) -> tuple[Remark, ...]:
    """The facts that follow from the settings of an arm and of its reference, called `name`."""
    pair = Pair(reference, arm)
    if not pair.changed:
        return (Remark("inert", f"its settings are those of {name}"),)
    reasons = {key: _without_effect(key, pair) for key in pair.changed}
    if all(reasons.values()):
        text = "; ".join(dict.fromkeys(f"{key} {why}" for key, why in reasons.items()))
        return (Remark("inert", f"it cannot differ from {name}: {text}"),)
    idle = [Remark("confounded", f"{key} {why}, so it adds nothing here") for key, why in reasons.items() if why]
    rules = [rule for rule in ARM_RULES if rule.kind != "inert" and any(map(rule.concerns, pair.changed))]
    return (*idle, *(Remark(rule.kind, rule.text(pair)) for rule in rules if rule.when(pair)))


def _without_effect(key: str, pair: Pair) -> str:
    """The reason why a changed setting can change no result; empty where there is none."""
    rules = [rule for rule in ARM_RULES if rule.kind == "inert" and rule.concerns(key) and rule.when(pair)]
    return rules[0].text(pair) if rules else ""
