"""The settings of environments, which answer a policy between the turns of an episode."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from slimrl.config.base import Count, CountOrZero, Needs, Positive, Section
from slimrl.config.rewards import is_programs

PACKAGES = "verifiers:"
"""What the name of a task begins with that is a package of `verifiers`; its environment has the same name."""


def package_of(name: str) -> str:
    """The package, or file, of `verifiers:PACKAGE`; empty for another name."""
    return name.removeprefix(PACKAGES) if name.startswith(PACKAGES) else ""


def with_package(settings: Any, *, paid: bool) -> Any:
    """Settings whose task is a package of `verifiers` with its environment, and where rewards are `paid` with what its rubric
    gives, as defaults; any others as they are.
    """
    task = settings.get("task") if isinstance(settings, dict) else None
    name = task.get("name") if isinstance(task, dict) else None
    if not isinstance(name, str) or not package_of(name):
        return settings
    found = {**settings, "environment": _under(settings.get("environment"), {"name": name})}
    return found | {"rewards": _under(settings.get("rewards"), {"correct": 0.0, "environment": 1.0})} if paid else found


def _under(section: Any, defaults: dict[str, Any]) -> Any:
    return {**defaults, **(section or {})} if section is None or isinstance(section, dict) else section


class EnvironmentConfig(Section):
    prefix = "environment"

    name: str = ""
    """`calculator`, `guess`, `python`, or a class of your own, as `file.py:Class` or `package.module:Class`; empty: a completion
    is one turn (docs/environments.md), unless the task is a package of `verifiers`, which has an environment of its own."""
    arguments: Annotated[dict[str, Any], Needs("name")] = Field(default={})
    """An environment is made by calling the class, or `load_environment` of a package of `verifiers`, with these."""
    turns: Annotated[Count, Needs("name")] = 8
    """Turns of the policy in an episode at most."""
    turn_tokens: Annotated[CountOrZero, Needs("name")] = 0
    """Tokens drawn in a turn at most; 0: as many as `rollout.max_new_tokens` leaves, which bounds all tokens behind a prompt,
    those of the environment too."""
    tool_prompt: Annotated[Literal["auto", "template", "text", "none"], Needs("name")] = "auto"
    """How a prompt describes the environment's tools: by the chat `template`, by a `text` in the system message with the plain
    form of a call, or not at all (`none`), for a model that knows them; `auto`: as the model needs it."""
    deadline: Annotated[Positive, Needs("name")] = 30.0
    """Seconds for an answer of the environment, after which the episode ends and is unscorable."""
    workers: Annotated[CountOrZero | Literal["auto"], Needs("name")] = "auto"
    """Processes in which environments run; 0: that of the run. What they print, start or break stays in theirs, which is replaced
    where an answer is late. `auto`: one for a class of your own, and none for those that are built in, packages of `verifiers`,
    classes that a Python program hands over, and classes in TRL's form beside functions of `rewards.custom`, which may read
    them."""
    memory: Annotated[Positive, Needs("name")] = 4.0
    """GiB that each of these processes may take."""

    @model_validator(mode="after")
    def _programs_are_bounded(self) -> Self:
        if self.name == "python" and self.deadline != EnvironmentConfig.model_fields["deadline"].default:
            raise ValueError(
                f"environment.deadline={self.deadline:g} has no effect on environment.name=python, whose programs wait for each "
                "other; bound them by environment.arguments={seconds: ...}, and remove it"
            )
        return self

    @model_validator(mode="after")
    def _workers_play(self) -> Self:
        here = "packages of verifiers" if package_of(self.name) else ""
        here = here or ("classes of a Python program" if is_programs(self.name) else "")
        if here and self.workers not in ("auto", 0):
            raise ValueError(f"environment.workers={self.workers}: {here} run in the process of the run; remove it")
        return self
