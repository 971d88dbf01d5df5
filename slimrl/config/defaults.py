"""Numbers for settings that say `auto` because the right one depends on the model and the task.

These are optimizer.learning_rate and rollout.max_new_tokens; docs/defaults.md has the table with its sources. They are chosen
once, where a run begins, and stand as numbers in its config.yaml: no later stage meets `auto`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.text import in_millions

TINY = 5_000_000
"""Parameters below which a model is tiny, as the built-in one."""
Rates = tuple[tuple[int, float], ...]
RL_RATES: Rates = ((0, 2e-4), (TINY, 1e-5), (250_000_000, 1e-6))
"""Rates by the parameters from which on they hold."""
RL_ADAPTER_RATES: Rates = ((0, 2e-3), (TINY, 1e-4))
SFT_RATES: Rates = ((0, 2e-4), (TINY, 1e-4), (50_000_000, 2e-5))
SFT_ADAPTER_RATES: Rates = ((0, 2e-3), (TINY, 1e-3), (50_000_000, 2e-4))
NEW_WEIGHTS = 2e-4  # of a model that begins with random weights, whatever its size: there is nothing to forget
TINY_BUDGET = 64  # new tokens of a tiny model, whatever the task
BUDGETS = {"arithmetic": 256, "svamp": 256, "gsm8k": 512, "code": 512, "jsonl": 512, "math": 1024, "aime": 4096}
"""New tokens of other models by task; a task that is not here gets those of `jsonl`."""
MOST_BY_SOLUTION = 4096  # new tokens that long worked solutions may ask for


@dataclass(frozen=True)
class Chosen:
    """Numbers by dotted key, empty where no setting says `auto`, and why they are these."""

    values: Mapping[str, int | float]
    sentence: str
    """For a person; empty where nothing was chosen."""


def choose(
    config: RootConfig,
    *,
    parameters: int,
    adapter: bool,
    context: int,
    longest_prompt: Callable[[], int],
    longest_solution: Callable[[], int],
) -> Chosen:
    """Numbers for the settings that say `auto`; the learning rate only for what trains.

    Args:
        parameters: of the model.
        adapter: only an adapter is trained.
        context: longest prompt plus completion, in tokens.
        longest_prompt: tokens; called only where the context may be short.
        longest_solution: tokens of long worked solutions, 0 where there are none; called only for task.name=jsonl.
    """
    values: dict[str, int | float] = {}
    reasons = []
    size = in_millions(parameters)
    if config.optimizer.learning_rate == "auto" and isinstance(config, TrainConfig | SftRunConfig):
        rate = learning_rate(config, parameters, adapter)
        values["optimizer.learning_rate"] = rate
        why = "new weights" if config.model.init == "random" else size
        reasons.append(f"optimizer.learning_rate={rate:g} ({why}{', LoRA' if adapter else ''})")
    if config.rollout.max_new_tokens == "auto":
        wanted = TINY_BUDGET if parameters < TINY else BUDGETS.get(config.task.name, BUDGETS["jsonl"])
        why = size if parameters < TINY else f"task {config.task.name}"
        if config.task.name == "jsonl" and parameters >= TINY and longest_solution() > wanted:
            wanted = min(MOST_BY_SOLUTION, 1 << (longest_solution() - 1).bit_length())
            why = "the longest worked solutions"
        budget = wanted
        if wanted > context // 2:  # a prompt longer than half the context may cost no other its room
            budget = max(1, min(wanted, max(context // 2, context - longest_prompt())))
        values["rollout.max_new_tokens"] = budget
        reasons.append(f"rollout.max_new_tokens={budget} ({why if budget == wanted else f'context of {context:,}'})")
    return Chosen(values, f"auto: {', '.join(reasons)}" if reasons else "")


def learning_rate(config: TrainConfig | SftRunConfig, parameters: int, adapter: bool) -> float:
    """Peak rate of AdamW for all weights of a model of this size, or for an adapter of it."""
    if isinstance(config, SftRunConfig):
        rates = SFT_ADAPTER_RATES if adapter else SFT_RATES
    else:
        rates = RL_ADAPTER_RATES if adapter else RL_RATES
    if config.model.init == "random":
        return NEW_WEIGHTS
    return [rate for start, rate in rates if parameters >= start][-1]
