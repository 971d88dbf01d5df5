"""Turns to imitate before a model plays `calculator` and `guess`: JSON lines of the messages so far and the next turn.

    python recipes/builtin/make_turns.py runs

leaves right turns in `know-turns.jsonl`, and in `imitate-turns.jsonl` a mixture of demonstrators most of whom are flawed, so that
rewards find a minority of good turns: they compute by themselves what they cannot compute, leave the end of a call out, or guess
without heeding the answers. The answers of an environment stand there as the user's, in whose role the built-in model reads
them. Deterministic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import cast

from slimrl.config.task import ArithmeticConfig
from slimrl.tasks import arithmetic, guess

LARGEST = 999
TURNS = 10


@dataclass(frozen=True)
class Mixture:
    """How many problems of each kind, and the shares of the flawed."""

    problems: int
    games: int
    no_call: float = 0.0
    """Solutions that compute by themselves."""
    cut_call: float = 0.0
    """Solutions whose calls lack their end."""
    deaf: float = 0.0
    """Guesses that do not heed the answers."""


FILES = {
    "know-turns": Mixture(problems=6_000, games=10_000),
    "imitate-turns": Mixture(problems=6_000, games=3_000, no_call=0.5, cut_call=0.25, deaf=0.6),
}

Turn = tuple[list[str], str]
"""What was said so far, beginning with the user's question, and the turn to imitate."""


def calculations(mixture: Mixture, random: Random) -> Iterator[Turn]:
    problems = arithmetic.load(ArithmeticConfig(max_number=LARGEST), seed=1).train
    for problem in problems[: mixture.problems]:
        steps, said, flaw = arithmetic.steps_of(problem), [problem.question], random.random()
        if flaw < mixture.no_call:
            yield said, f"{problem.solution}\n#### {problem.answer}"
            continue
        for step in steps:
            call = f"<calculate>{step.left}{step.operator}{step.right}"
            if flaw < mixture.no_call + mixture.cut_call:
                yield said, call
                break
            yield said, f"{call}</calculate>"
            said = [*said, f"{call}</calculate>", str(step.result)]
        else:
            yield said, f"#### {problem.answer}"


def games(mixture: Mixture, random: Random) -> Iterator[Turn]:
    for problem in guess.load(seed=1).train[: mixture.games]:
        first, last = (cast(int, problem.columns[bound]) for bound in ("low", "high"))
        number, low, high, said = int(problem.answer), first, last, [problem.question]
        for _ in range(TURNS):
            tried = (random.randint(low, high) + random.randint(low, high)) // 2
            if random.random() < mixture.deaf:
                tried = random.randint(first, last)
            yield said, f"#### {tried}"
            if tried == number:
                break
            low, high = (max(low, tried + 1), high) if tried < number else (low, min(high, tried - 1))
            said = [*said, f"#### {tried}", "higher" if tried < number else "lower"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mixture in FILES.items():
        random = Random(name)
        found = [*calculations(mixture, random), *games(mixture, random)]
        turns = {tuple(said): turn for said, turn in found}  # a prompt is imitated once
        rows = list(turns.items())
        random.shuffle(rows)
        with (folder / f"{name}.jsonl").open("w") as file:
            for said, turn in rows:
                roles = ["user", "assistant"] * len(said)
                messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
                file.write(json.dumps({"question": messages, "solution": turn}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
