"""From the completions of one problem to a scored group: call each reward and pay the weighted sum of what they return."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from slimrl.errors import SettingsError
from slimrl.records import Group, Played, Problem, Rollout
from slimrl.rewards import Reward
from slimrl.rewards.asynchronous import await_all
from slimrl.rewards.calls import Call, is_asynchronous
from slimrl.rewards.calls import Sampled as Sampled
from slimrl.rewards.outcomes import Scored, total
from slimrl.rewards.outcomes import Unscored as Unscored
from slimrl.tasks import Task


def score(sampled: Sampled, rewards: Sequence[Reward], task: Task) -> Group:
    """The group of one problem's completions with what each of them earns.

    A completion that a reward fails on (a value that is no number, not finite or outside of its bounds; an exception; a
    checker's missed deadline), or to which none of them applies, is `unscorable`, never 0; where no reward is paid, it is 0. A
    reward of weight 0 decides nothing of this. If `sampled` is strict, failures of any function raise SettingsError, which names
    the reward, the problem, the completion and the line.
    """
    correct = [task.grade(text, sampled.problem.answer).strict for text in sampled.texts]
    return assemble(sampled, rewards, correct, dict(results(asked(rewards, sampled), sampled, task)))


def asked(rewards: Iterable[Reward], sampled: Sampled) -> list[Reward]:
    """The rewards without those that the sample skips."""
    return [reward for reward in rewards if reward.name not in sampled.skip]


def results(
    rewards: Sequence[Reward], sampled: Sampled, task: Task, seconds: float | None = None
) -> Iterator[tuple[str, Scored]]:
    """The result of each reward by name: plain functions in turn, then the asynchronous ones together, for `seconds` each."""
    later = [reward for reward in rewards if is_asynchronous(reward.function)]
    for reward in rewards:
        if reward not in later:
            yield reward.name, Call(reward, sampled, task).scored()
    for call, scored in await_all([Call(reward, sampled, task) for reward in later], seconds):
        yield call.reward.name, scored


def assemble(
    sampled: Sampled, rewards: Sequence[Reward], correct: Sequence[bool], found: Mapping[str, Scored]
) -> Group:
    """The group, from the verdict on each completion and the result of each reward that was asked; raises as `score` does."""
    weights = {reward.name: reward.weight for reward in rewards}
    given = [(reward.name, found[reward.name]) for reward in rewards if reward.name in found]
    paying = next((reward for reward in rewards if reward.pays_turns and reward.weight), None)
    rollouts = []
    for row, (completion, text, right) in enumerate(zip(sampled.completions, sampled.texts, correct, strict=True)):
        scores: dict[str, float] = {}
        played = sampled.played[row] if sampled.played else Played()
        reason, unmeasured = played.failed, ""
        if reason and sampled.strict:
            raise SettingsError(f"{reason}, on problem {sampled.problem.id}; correct the class of environment.name")
        for name, result in given:
            outcome = result.outcomes[row]
            if isinstance(outcome, Unscored):
                if sampled.strict and not outcome.excused:
                    raise _refusal(name, outcome, sampled.problem, text)
                sentence = f"reward {name} {outcome.reason}"
                if weights[name]:
                    reason = reason or sentence
                else:
                    unmeasured = unmeasured or sentence
            elif outcome is not None:
                scores[name] = outcome
        earned = {name: weights[name] * value for name, value in scores.items() if weights[name]}
        reason = reason or ("" if earned or not any(weights.values()) else "no reward applies")
        reward = 0.0 if reason else total([*earned.values()])
        if not math.isfinite(reward):
            name = max(earned, key=lambda name: abs(earned[name]))
            unpaid = Unscored(
                f"returned {scores[name]:g}, which makes the weighted sum of rewards too large for a number"
            )
            if sampled.strict:
                raise _refusal(name, unpaid, sampled.problem, text)
            reward, reason = 0.0, f"reward {name} {unpaid.reason}"
        columns = {name: {key: x[row] for key, x in result.columns.items()} for name, result in given if result.columns}
        columns |= {"environment": columns.get("environment", {}) | {**played.metrics}} if played.metrics else {}
        rollouts.append(
            Rollout(
                sampled.problem,
                completion,
                text,
                right if played.right is None else played.right,
                scores,
                reward,
                reason,
                columns,
                unmeasured,
                turns=played.turns,
                turn_rewards=played.rewards,
                environment_score=played.score,
                returns=() if reason else _returns(reward, earned, paying, played, completion.turns),
                calls=played.calls,
            )
        )
    return Group(tuple(rollouts), sampled.step, _metrics(sampled, [result for _, result in given]))


def _metrics(sampled: Sampled, results: Iterable[Scored]) -> dict[str, tuple[float, ...]]:
    """The numbers that functions logged by `log_metric`, and the metrics of episodes, by name."""
    logged = [item for result in results for item in result.metrics.items()]
    logged += [(name, (value,)) for played in sampled.played for name, value in played.metrics.items()]
    metrics: dict[str, tuple[float, ...]] = {}
    for name, values in logged:
        metrics[name] = (*metrics.get(name, ()), *values)
    return metrics


def _returns(
    reward: float, earned: Mapping[str, float], paying: Reward | None, played: Played, turns: int
) -> tuple[float, ...]:
    """`Rollout.returns` of an episode of so many turns, of which `paying` pays each: summed from the last turn on, so that equal
    rewards have equal returns whatever came before them.
    """
    if paying is None or not played.rewards:
        return ()
    at_end = [value for name, value in earned.items() if name != paying.name]
    at_end += [] if played.score is None else [paying.weight * played.score]
    paid = [paying.weight * (one or 0.0) for one in played.rewards]
    return (reward, *(total([*at_end, *paid[turn:]]) for turn in range(1, turns)))


def unpaid_when_truncated(group: Group, rewards: Sequence[Reward]) -> Group:
    """The group with 0 for every truncated completion, whatever it would have earned, in every reward that is paid (Dr. GRPO's
    code).
    """
    paid = {reward.name for reward in rewards if reward.weight}
    rollouts = [
        replace(r, reward=0.0, returns=(), scores={name: 0.0 if name in paid else x for name, x in r.scores.items()})
        if r.completion.finish == "length"
        else r
        for r in group.rollouts
    ]
    return replace(group, rollouts=tuple(rollouts))


def _refusal(name: str, outcome: Unscored, problem: Problem, text: str) -> SettingsError:
    at = f" ({outcome.where})" if outcome.where else ""
    return SettingsError(
        f"reward {name} {outcome.reason}{at} on problem {problem.id}, completion {text[:80]!r}; "
        f"{outcome.remedy or 'correct the function or remove it from rewards'}"
    )
