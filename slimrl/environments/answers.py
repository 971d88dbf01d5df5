"""The values that the methods of an environment return, checked where they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from slimrl.environments import ANSWERS, Environment, Messages, message_fault
from slimrl.environments.waiting import awaited
from slimrl.errors import DataError, SlimError, raised


def score_of(environment: Environment) -> tuple[float | None, dict[str, float]]:
    """The score of an episode, and the metrics that it has behind it."""
    score: Any = awaited(getattr(environment, "score", lambda: 0.0)())
    metrics: Any = getattr(environment, "metrics", None)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise DataError(f"has {type(metrics).__name__} as metrics, which is no mapping of names to numbers")
    found = {str(name): _metric(str(name), value) for name, value in (metrics or {}).items()}
    return _reward(score, "from score"), found


def _metric(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"has {str(value)[:60]!r} as metrics[{name!r}], which is no number") from None


def answer_of(environment: Environment, text: str) -> tuple[Messages, bool, float | None]:
    """Messages, whether the episode is over, and the turn's reward; raises DataError for an answer of another form."""
    answer: Any = awaited(environment.step(text))
    if not isinstance(answer, tuple) or len(answer) not in (2, 3) or not isinstance(answer[1], bool):
        raise DataError(
            f"returned {str(answer)[:60]!r} from step, which is no pair of messages and True or False, with or without a reward"
        )
    messages, over, *rest = answer
    if fault := message_fault(messages, ANSWERS):
        raise DataError(f"returned {fault} from step")
    messages = [{**message, "content": _writable(message["content"])} for message in messages]
    if not over and not messages:
        raise DataError("returned no messages from step for an episode that is not over")
    return messages, over, _reward(rest[0], "from step as the reward of a turn") if rest else None


def _writable(text: str) -> str:
    """The text with `?` for each half of a surrogate pair, which a policy can spell in JSON and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _reward(value: Any, place: str) -> float | None:
    """A score or the reward of a turn; raises DataError for what is neither a finite number nor None."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        value = value.item()
    if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
        raise DataError(f"returned {str(value)[:60]!r} {place}, which is no finite number")
    return None if value is None else float(value)


def told(error: BaseException) -> str:
    """The words on an error behind "the environment"."""
    return str(error) if isinstance(error, SlimError) else raised(error)
