"""A second `Sampler`: it plays completions that were recorded, as one that knows nothing of the policy's module would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from slimrl.machine.progress import Progress, silent
from slimrl.model.policy import Policy
from slimrl.records import Completion
from slimrl.rollout import OnGroup, Request, ignore
from slimrl.rollout.engine import RolloutEngine

Tape = dict[Any, tuple[Completion, ...]]


def key(request: Request) -> Any:
    return request.prompt_ids, request.uniforms.shape, request.uniforms.tobytes(), request.greedy


def total(policy: Policy) -> float:
    """A number that tells the weights of a policy apart."""
    return sum(float(p.detach().double().sum()) for p in policy.model.parameters())


class Recording(RolloutEngine):
    """The engine, with everything that it sampled on `tape`."""

    tape: Tape

    def generate(self, requests: Sequence[Request], **settings: Any) -> Any:
        found = super().generate(requests, **settings)
        self.tape.update(zip(map(key, requests), found, strict=True))
        return found


class Scripted:
    """Plays a tape. `shift` is added to each log-probability, as by a sampler whose weights are others."""

    def __init__(self, policy: Policy, tape: Tape, *, exact: bool, shift: float = 0.0) -> None:
        self.policy, self.tape, self.exact, self.shift = policy, tape, exact, shift
        self.slots = 8
        self.seen = [total(self.policy)]
        """Sums of the policy's weights: at first, and at each call of `weights_changed`."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        on_group: OnGroup = ignore,
        progress: Progress = silent,
    ) -> list[tuple[Completion, ...]]:
        del max_new_tokens, temperature, progress
        groups = []
        for index, request in enumerate(requests):
            played = tuple(
                dataclasses.replace(c, logprobs=tuple(p + self.shift for p in c.logprobs))
                for c in self.tape[key(request)]
            )
            on_group(index, played)
            groups.append(played)
        return groups

    def weights_changed(self) -> None:
        self.seen.append(total(self.policy))

    def limit_slots(self, slots: int) -> None:
        self.slots = min(self.slots, slots)


def recorder(tape: Tape) -> Callable[..., Recording]:
    """Stands for the engine's class in a setup."""

    def make(policy: Policy, **settings: Any) -> Recording:
        engine = Recording(policy, **settings)
        engine.tape = tape
        return engine

    return make
