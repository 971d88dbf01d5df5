"""The settings of environments, which answer a policy between the turns of an episode."""

from typing import Annotated, Any, Literal

from pydantic import Field

from slimrl.config.base import Count, CountOrZero, Needs, Positive, Section


class EnvironmentConfig(Section):
    prefix = "environment"

    name: str = ""
    """`calculator` or `guess`, or a class of your own, as `file.py:Class` or `package.module:Class`; empty: a completion is one
    turn (docs/environments.md)."""
    arguments: Annotated[dict[str, Any], Needs("name")] = Field(default={})
    """An environment is made by calling the class with these."""
    turns: Annotated[Count, Needs("name")] = 8
    """Turns of the policy in an episode at most."""
    turn_tokens: Annotated[CountOrZero, Needs("name")] = 0
    """Tokens drawn in a turn at most; 0: as many as `rollout.max_new_tokens` leaves, which bounds all tokens behind a prompt,
    those of the environment too."""
    tool_prompt: Annotated[Literal["auto", "template", "text", "none"], Needs("name")] = "auto"
    """How a prompt describes the environment's tools: by the chat `template`, by a `text` in the system message with the plain
    form of a call, or not at all (`none`), for a model that knows them; `auto`: by the template if it can."""
    deadline: Annotated[Positive, Needs("name")] = 30.0
    """Seconds for an answer of the environment, after which the episode ends and is unscorable."""

    def is_on(self, key: str) -> bool:
        """True where the setting has a value."""
        return bool(getattr(self, key))
