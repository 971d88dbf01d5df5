"""One question to a model, as `slimrl sample` asks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slimrl.api.guest import guest
from slimrl.api.measuring import measuring_settings
from slimrl.api.settings import dotted, from_keywords
from slimrl.config.schema import EvalConfig
from slimrl.errors import SettingsError
from slimrl.machine.threads import settle_threads
from slimrl.records import Played, Turns

IDLE = ("devices", "device_deadline", "evaluation", "rewards", "rollout.engine")
"""Settings, and sections of them, that other measurements read: one process, with SlimRL's own sampler, answers a question."""


def refuse_idle(keys: Iterable[str]) -> None:
    """Raises SettingsError for a setting, by its dotted key, that does not act on the answer to one question."""
    for key in keys:
        if f"{key}.".startswith(tuple(f"{name}." for name in IDLE)):
            raise SettingsError(f"{key} has no effect on what a model answers; remove it")


@dataclass(frozen=True)
class Answer:
    """A completion, or an episode where the settings have an environment."""

    text: str
    """Of an episode its last turn."""
    finish: Literal["stop", "length"]
    tokens: int
    """Those that the model drew."""
    turns: Turns = ()
    """Role and text of everything that was said in an episode; empty where a completion is one turn."""
    failed: str = ""
    """Why the environment could not go on; empty where it did."""

    def __str__(self) -> str:
        return self.text


def sample_of(model: str, question: str, count: int, *, greedy: bool, settings: Mapping[str, Any]) -> list[Answer]:
    """Completions of a model or a run for one question; raises SettingsError for a question or settings that cannot be."""
    if not question.strip():
        raise SettingsError("the question is empty; give one")
    if count < 1:
        raise SettingsError(f"n={count} gives no completion; set 1 or more")
    if greedy and count > 1:
        raise SettingsError("n has no effect with greedy=True, which gives one completion; remove one of them")
    chosen = from_keywords(settings)
    refuse_idle(dotted(chosen))
    config = measuring_settings(model, chosen)
    with guest():
        settle_threads()
        return ask(config, question, count, greedy=greedy)


def ask(config: EvalConfig, question: str, count: int, *, greedy: bool) -> list[Answer]:
    """`count` sampled completions, or one by greedy decoding; the same seed gives the same ones.

    Raises SettingsError where the prompt and the token budget exceed the model's context, or the environment does not take the
    question.
    """
    from slimrl.preflight.environment import asked, in_environment, played
    from slimrl.preflight.fitting import budget_behind
    from slimrl.preflight.prompting import prepare_model
    from slimrl.randomness import uniforms
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine

    policy, prompter, instruction = prepare_model(config)
    rules, policy, prompter = in_environment(config, policy, prompter)
    messages, play = asked(rules, instruction, question)
    ids = prompter.ids(messages)
    budget = budget_behind(config, policy, prompt=len(ids))
    if len(ids) + budget > policy.context:
        raise SettingsError(
            f"a prompt of {len(ids)} tokens and rollout.max_new_tokens={budget} exceed the model's context of "
            f"{policy.context}; shorten the question or lower the budget"
        )
    draws = uniforms(config.seed, "sample", 0, question, samples=count, positions=budget)
    request = Request(ids, draws[:0] if greedy else draws, int(greedy), play, config.environment.turn_tokens)
    slots = count if config.rollout.slots == "auto" else config.rollout.slots
    (group,) = RolloutEngine(policy, slots=slots, compiled=config.rollout.compile).generate(
        [request], max_new_tokens=budget, temperature=config.rollout.temperature
    )
    told = played(request, group) or (Played(),) * len(group)
    return [
        Answer(policy.decode(one.last_turn(), one.heard()), one.finish, one.drawn, episode.turns, episode.failed)
        for one, episode in zip(group, told, strict=True)
    ]
