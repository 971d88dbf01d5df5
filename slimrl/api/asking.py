"""One question to a model, as `slimrl sample` asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slimrl.api.guest import guest
from slimrl.api.measuring import measuring_settings
from slimrl.api.settings import from_keywords
from slimrl.config.schema import EvalConfig
from slimrl.errors import SettingsError
from slimrl.machine.threads import settle_threads


@dataclass(frozen=True)
class Answer:
    """A completion."""

    text: str
    finish: Literal["stop", "length"]
    tokens: int

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
    config = measuring_settings(model, from_keywords(settings))
    with guest():
        settle_threads()
        return ask(config, question, count, greedy=greedy)


def ask(config: EvalConfig, question: str, count: int, *, greedy: bool) -> list[Answer]:
    """`count` sampled completions, or one by greedy decoding; the same seed gives the same ones.

    Raises SettingsError where the prompt and the token budget exceed the model's context.
    """
    from slimrl.preflight.prompting import prepare_model
    from slimrl.preflight.setup import budget_behind
    from slimrl.randomness import uniforms
    from slimrl.rollout import Request
    from slimrl.rollout.engine import RolloutEngine
    from slimrl.tasks import chat_messages

    policy, prompter, instruction = prepare_model(config)
    ids = prompter.ids(chat_messages(instruction, question))
    budget = budget_behind(config, policy, prompt=len(ids))
    if len(ids) + budget > policy.context:
        raise SettingsError(
            f"a prompt of {len(ids)} tokens and rollout.max_new_tokens={budget} exceed the model's context of "
            f"{policy.context}; shorten the question or lower the budget"
        )
    draws = uniforms(config.seed, "sample", 0, question, samples=count, positions=budget)
    request = Request(ids, draws[:0], greedy=1) if greedy else Request(ids, draws)
    slots = count if config.rollout.slots == "auto" else config.rollout.slots
    (group,) = RolloutEngine(policy, slots=slots, compiled=config.rollout.compile).generate(
        [request], max_new_tokens=budget, temperature=config.rollout.temperature
    )
    return [Answer(policy.decode(one.token_ids), one.finish, len(one.token_ids)) for one in group]
