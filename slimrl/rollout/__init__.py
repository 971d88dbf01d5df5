"""Sampling completions. This room knows the policy and nothing of tasks, rewards, losses or settings.

`Sampler` is the seam: everything outside of this room asks for completions through it. `RolloutEngine` in `engine`
implements it with the trainer's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from slimrl.machine.progress import Progress, silent

if TYPE_CHECKING:
    from slimrl.records import Completion

OnGroup = Callable[[int, tuple["Completion", ...]], None]
"""Receives the index of a request and its completions."""
OnTurn = Callable[[int, tuple[int, ...]], "Future[tuple[int, ...]]"]
"""Receives the number of a completion and its tokens so far, the last of which ended a turn. The result is the tokens that an
environment writes before the next turn; none where the episode is over."""


@dataclass(frozen=True)
class Request:
    """One prompt, the uniform numbers of its samples, and the number of its greedy completions."""

    prompt_ids: tuple[int, ...]
    uniforms: NDArray[np.float64]
    """[samples, max_new_tokens] in [0, 1): the draws of every token."""
    greedy: int = 0
    """Completions of the most probable tokens, which come after the samples."""
    on_turn: OnTurn | None = None
    """Of episodes of several turns; None where a completion is one turn."""
    turn_tokens: int = 0
    """Tokens drawn in a turn at most, after which its episode ends as truncated; 0: no bound but that of the whole."""

    @property
    def completions(self) -> int:
        """Samples and greedy completions together."""
        return len(self.uniforms) + self.greedy


def demand_room(requests: Sequence[Request], max_new_tokens: int, context: int) -> None:
    """Raises ValueError for a prompt that leaves no room for `max_new_tokens` in a model's context."""
    longest = max((len(request.prompt_ids) for request in requests), default=0)
    if longest + max_new_tokens > context:
        raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of {context}")


def ignore(_request: int, _completions: tuple[Completion, ...]) -> None:
    """The `OnGroup` of a caller that waits for the whole result."""


class Sampler(Protocol):
    """Samples completions from the policy as it is now."""

    slots: int
    """Completions sampled at the same time. Speed and memory depend on it, tokens do not."""
    exact: bool
    """True where the log-probabilities come from the trainer's own module, so that they differ from the trainer's by rounding
    alone. Where it is False the trainer computes the old log-probabilities of a ratio again."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        on_group: OnGroup = ignore,
        progress: Progress = silent,
    ) -> list[tuple[Completion, ...]]:
        """Completions of every request, in order; log-probabilities in nats under softmax(logits / temperature).

        `max_new_tokens` bounds all tokens behind a prompt, those of an environment too.

        `on_group` is called when the last completion of a request is done, while others are still sampled; `progress` is told of
        the completions that are done whenever some are.
        """
        ...

    def weights_changed(self) -> None:
        """Called before samples are asked for with weights that may have changed, by an update or a restored checkpoint."""
        ...

    def limit_slots(self, slots: int) -> None:
        """Use at most this many slots from now on."""
        ...
