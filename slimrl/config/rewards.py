"""The settings of the rewards: a weight for each built-in reward, functions of the user's own, judges, and the processes that
score."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from slimrl.config.base import Count, CountOrZero, Needs, NonNegative, Positive, Section
from slimrl.config.judge import JudgeReward, Name
from slimrl.terms import CompletionForm


@dataclass(frozen=True)
class Weight:
    """Marks the weight of a built-in reward, whose function of the same name is in `slimrl/rewards/builtin.py`."""

    case_study: bool = False
    """One of the four that `as_published` switches."""


PUNISHMENTS = frozenset({"soft_overlong", "repetition"})
"""Rewards that are 0 at most: they pay for nothing."""
PROGRAM = "__main__"
"""Place of functions that a Python program hands over, as `__main__:brief`: no other process can call them."""


def is_programs(spec: str) -> bool:
    """True for a function of the program that called SlimRL, False for one of a file or a module."""
    return spec.rpartition(":")[0] == PROGRAM


class CustomReward(Section):
    """A reward function of yours, named `file.py:function` or `package.module:function`, with TRL's signature."""

    weight: float = 1.0
    """Factor before the sum; 0: measured in training and held out, and never paid."""
    low: float | None = None
    """Lowest value it can return; without it none is too low."""
    high: float | None = None
    """Highest value it can return, which gold answers must earn; without it none is too high, and they are only tried."""
    completions: CompletionForm = "auto"
    """The form of a completion: strings or, as TRL's conversational data sets, lists of {"role", "content"}. `auto`: messages
    where the function annotates its parameter `completions` so, as TRL's do, else strings."""
    arguments: dict[str, Any] | None = None
    """Of a function that makes the reward function: it is called with these, once, and what it returns is the reward."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


def long_form(value: object) -> object:
    """A weight alone, the short form of a custom reward, as the mapping that it stands for."""
    return {"weight": float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else value


Custom = Annotated[CustomReward, BeforeValidator(long_form, json_schema_input_type=float | CustomReward)]


class RewardsConfig(Section):
    prefix = "rewards"

    correct: Annotated[float, Weight()] = 1.0
    """Weight of: 1 when the strict answer equals the gold answer, else 0."""
    format: Annotated[float, Weight()] = 0.0
    """Weight of: 1 when the completion has the required form, else 0."""
    tests_passed: Annotated[float, Weight()] = 0.0
    """Weight of: the share of the tests of a problem that the program passes, 0 to 1 (needs task.name=code)."""
    match_format_exactly: Annotated[float, Weight(case_study=True)] = 0.0
    """Weight of the case study's exact format reward (0 or 3 points; needs task.style=tags)."""
    match_format_approximately: Annotated[float, Weight(case_study=True)] = 0.0
    """Weight of the case study's tag counts (-2 to 2 points; needs task.style=tags)."""
    check_answer: Annotated[float, Weight(case_study=True)] = 0.0
    """Weight of the case study's tiered answer reward (-1 to 3 points; needs task.style=tags)."""
    check_numbers: Annotated[float, Weight(case_study=True)] = 0.0
    """Weight of the case study's number reward (0 or 1.5 points; needs task.style=tags)."""
    as_published: bool = False
    """Use the case study's four functions with their published defects (docs/techniques.md lists them)."""
    environment: Annotated[float, Weight()] = 0.0
    """Weight of what the environment pays for an episode: the rewards of its turns, plus its `score` (docs/environments.md)."""
    soft_overlong: Annotated[NonNegative, Weight()] = 0.0
    """Weight of DAPO's soft overlong punishment, -1 to 0, added once to the sum (arXiv:2503.14476, eq. 13). DAPO pays 1 and -1,
    so that the punishment is at most half of what right and wrong differ by; with a reward of 1 and 0 that is 0.5."""
    zero_truncated: bool = False
    """A truncated completion is paid 0, whatever it would have earned; rewards that can fall below 0 then favour it."""
    overlong_buffer: Annotated[Count | Literal["auto"], Needs("soft_overlong")] = "auto"
    """Tokens before the budget at which the punishment begins (L_cache in DAPO); `auto`: a fifth of the budget, as there."""
    cosine_length: Annotated[NonNegative, Weight()] = 0.0
    """Weight of the cosine length reward (arXiv:2502.03373): by length between two values where the strict answer is right,
    between two others where it is wrong, and one value for a completion that fills the budget. It stands in for `correct`."""
    cosine_right_short: Annotated[float, Needs("cosine_length")] = 2.0
    """Right, at length 0 (r_0^c there)."""
    cosine_right_long: Annotated[float, Needs("cosine_length")] = 1.0
    """Right, at the budget (r_L^c)."""
    cosine_wrong_short: Annotated[float, Needs("cosine_length")] = -10.0
    """Wrong, at length 0 (r_0^w)."""
    cosine_wrong_long: Annotated[float, Needs("cosine_length")] = 0.0
    """Wrong, at the budget (r_L^w)."""
    cosine_exceeded: Annotated[float, Needs("cosine_length")] = -10.0
    """Of as many tokens as the budget has, right or wrong (r_e)."""
    repetition: Annotated[NonNegative, Weight()] = 0.0
    """Weight of a punishment for repeated n-grams of tokens, -1 to 0: minus the share of n-grams that occurred before."""
    repetition_ngram: Annotated[Count, Needs("repetition")] = 3
    """Tokens of an n-gram."""
    random: Annotated[float, Weight()] = 0.0
    """Weight of: 1 or 0 by the toss of a coin, whatever a completion says. A control: what a run learns from it is no skill."""
    custom: dict[str, Custom] = Field(default={})
    """Your own functions by `file.py:function` or `package.module:function`, each with its weight, as {rewards.py:short: 0.5}, or
    with a mapping of `weight` (1), `low` and `high` (bounds), `completions` (`auto`) and `arguments` (docs/rewards.md)."""
    judge: dict[Name, JudgeReward] = Field(default={})
    """Language models that score completions, by a name of yours: `endpoint`, `model`, `prompt` or `prompt_file`, `low` and
    `high` each, and what else docs/rewards.md lists."""
    watched: list[str] = Field(default=[])
    """Built-in rewards and judges, by name, that are measured in training and held out also where their weight is 0. Functions of
    your own are measured whatever their weight."""
    workers: CountOrZero | Literal["auto"] = "auto"
    """Processes that score groups while others are still generated; 0 scores in this one. What is paid is the same. `auto`: a
    few where there are functions of your own, none where all is built in."""
    deadline: Positive = 10.0
    """Seconds that a function of your own may take for a group before its worker is killed, or an `async def` cancelled, and the
    group is unscorable. In an evaluation the completions of a problem, which may be more, have it once for every
    `rollout.group_size` of them."""
    memory: Positive = 4.0
    """GiB that a worker may take."""
    unscorable_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run stops where a larger share of the completions of 20 steps was unscorable; 1: never."""
    gold_check: Literal["refuse", "report"] = "refuse"
    """The consequence of a gold answer that cannot earn the maximum: refuse to start, or only report."""

    def buffer(self, max_new_tokens: int) -> int:
        """The overlong buffer in tokens."""
        return max(1, max_new_tokens // 5) if self.overlong_buffer == "auto" else self.overlong_buffer

    def check_buffer(self, max_new_tokens: int) -> None:
        """Raises ValueError for a buffer that is larger than the budget."""
        if "soft_overlong" in self.built_in and self.buffer(max_new_tokens) > max_new_tokens:
            raise ValueError(
                f"rewards.overlong_buffer={self.overlong_buffer} exceeds rollout.max_new_tokens={max_new_tokens}; lower it"
            )

    @property
    def payment(self) -> "RewardsConfig":
        """These settings without those that change nothing of what is paid: rewards of weight 0, `watched`, `workers`."""
        left = {
            "custom": {spec: custom for spec, custom in self.custom.items() if custom.weight},
            "judge": {name: judge for name, judge in self.judge.items() if judge.weight},
        }
        return self.model_copy(update={**left, "watched": [], "workers": RewardsConfig.model_fields["workers"].default})

    @property
    def of_the_program(self) -> tuple[str, ...]:
        """The user's own functions that only the program which called SlimRL can call, as `__main__:function`."""
        return tuple(spec for spec in self.custom if is_programs(spec))

    @property
    def judges(self) -> tuple[str, ...]:
        """The judges that are asked: those whose weight is not 0, or that are watched."""
        return tuple(name for name, judge in self.judge.items() if judge.weight or name in self.watched)

    def is_on(self, key: str) -> bool:
        """True for a reward also where it is only watched."""
        return super().is_on(key) or key in self.watched

    @property
    def built_in(self) -> tuple[str, ...]:
        """The built-in rewards that are computed: those whose weight is not 0, or that are watched."""
        return tuple(name for name in self.marked(Weight) if getattr(self, name) or name in self.watched)

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of all rewards that are computed, functions as `file.py:function`."""
        return (*self.built_in, *self.custom, *self.judges)

    @property
    def paid(self) -> tuple[str, ...]:
        """Those of them whose weight is not 0."""
        weights = {name: getattr(self, name) for name in self.marked(Weight)}
        weights |= {name: custom.weight for name, custom in self.custom.items()}
        weights |= {name: judge.weight for name, judge in self.judge.items()}
        return tuple(name for name in self.measured if weights[name])

    @model_validator(mode="after")
    def _own_names_are_own(self) -> Self:
        """Also where the built-in reward is not paid: metrics, evaluations and the gold check know it by its name."""
        functions = {f"rewards.custom: {spec!r}": spec.rpartition(":")[2] for spec in self.custom}
        judges = {f"rewards.judge.{name}": name for name in self.judge}
        for setting, name in {**functions, **judges}.items():
            if name in self.marked(Weight):
                other = ", or import the function under another name in a file of yours" if setting in functions else ""
                raise ValueError(f"{setting} has the name of the built-in reward {name}; rename it{other}")
        return self

    @model_validator(mode="after")
    def _watched_exist(self) -> Self:
        known = [*(name for name in self.marked(Weight) if name != "correct"), *self.judge]
        for name in self.watched:
            if name == "correct":
                raise ValueError("rewards.watched: correct is the accuracy, which is always measured; remove it")
            if name in (text for spec in self.custom for text in (spec, spec.rpartition(":")[2])):
                raise ValueError(f"rewards.watched: {name} is a function of yours, which is always measured; remove it")
            if name not in known:
                raise ValueError(
                    f"rewards.watched: {name!r} is no built-in reward and no judge, which are {', '.join(known)}; a function of "
                    "yours is measured with weight 0 in rewards.custom"
                )
        return self

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        idle = self.workers == 0 or len(self.of_the_program) == len(self.custom)
        for key in ("memory",) if self.of_the_program else ("deadline", "memory"):
            if idle and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"rewards.{key} acts on rewards.custom in workers, and there are none; remove it")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name in ("soft_overlong", "cosine_length"):
            if self.zero_truncated and getattr(self, name):
                raise ValueError(
                    f"rewards.zero_truncated pays a completion that is cut off more than rewards.{name} pays one that nearly "
                    "is; set one"
                )
        case_study = {name for name, weight in self.marked(Weight).items() if weight.case_study}
        if self.as_published and case_study.isdisjoint(self.built_in):
            raise ValueError(
                "rewards.as_published has no effect without one of the case study's four rewards; remove it"
            )
        return self
