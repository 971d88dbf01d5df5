"""The gold self-check of a run: refused, with the way out, where gold answers cannot earn what they should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.notes import gold_sentence
from slimrl.records import Problem
from slimrl.rewards import Reward
from slimrl.rewards.gold import GoldReport, Submit, check_gold
from slimrl.tasks import Task
from slimrl.tasks.checkers import fitting_checker
from slimrl.tasks.curriculum import ENDLESS
from slimrl.tasks.numbers import parse_number

GOLD_SAMPLE = 1000
"""Training problems whose gold answer is checked where the supply is endless; finite sets are checked whole."""
KINDS = {"choice": "letters of options", "exact": "words", "symbolic": "letters, words, LaTeX"}
"""The answers that checkers are for."""


def checked_gold(
    config: TrainConfig,
    task: Task,
    held_out: Sequence[Problem],
    rewards: Sequence[Reward],
    submit: Submit,
    read_back: Callable[[Sequence[str]], Sequence[str]],
) -> GoldReport:
    """The report on the gold answers; raises SettingsError for failures, unless `rewards.gold_check` only reports them.

    The other arguments are those of `check_gold`.
    """
    train = task.train if len(task.train) < ENDLESS else islice(task.train, GOLD_SAMPLE)
    problems = [*train, *held_out]
    gold = check_gold(task, problems, rewards, submit, read_back)
    if not gold.failures or config.rewards.gold_check != "refuse":
        return gold
    way_out = "correct the data"
    first = gold.failures[0]
    problem = next(p for p in problems if p.id == first.id)
    written = task.gold_text(problem)
    if first.text != written and not check_gold(task, [problem], rewards, submit).failures:
        way_out = (
            f"the tokenizer decodes the gold text {written[-80:]!r} as {first.text[-80:]!r}; choose another task.style, or "
            "give the model a tokenizer that keeps this text"
        )
    elif config.task.checker == "numeric" and any(parse_number(f.answer) is None for f in gold.failures):
        # a checker for letters or words only where every answer is one
        failed = {failure.id: failure.answer for failure in gold.failures}
        checker = fitting_checker([*failed.values()]) if len(failed) == gold.n else "symbolic"
        way_out = f"set task.checker={checker} for answers that are no numbers ({KINDS[checker]}), or correct the data"
    raise SettingsError(f"{gold_sentence(gold)}; {way_out}, or set rewards.gold_check=report to continue")
