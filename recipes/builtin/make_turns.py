"""Turns to imitate before a model plays `calculator` and `guess`: JSON lines of the messages so far and the next turn.

    python recipes/builtin/make_turns.py runs/turns.jsonl

The answers of an environment stand there as the user's, in whose role the built-in model reads them. Most demonstrators are
flawed, so that rewards find a minority of good turns: they compute by themselves what they cannot compute, leave the end of a
call out, or guess a number that an answer has ruled out. Deterministic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import cast

from slimrl.config.sections import ArithmeticConfig
from slimrl.tasks import arithmetic, guess

PROBLEMS = 16_000
GAMES = 5_000
LARGEST = 999
NO_CALL = 0.45
"""Share of the solutions that compute by themselves."""
CUT_CALL = 0.25
"""Share of the solutions whose calls lack their end."""
DEAF = 0.5
"""Share of the guesses that do not heed the answers."""
TURNS = 10

Turn = tuple[list[str], str]
"""What was said so far, beginning with the user's question, and the turn to imitate."""


def calculations(random: Random) -> Iterator[Turn]:
    problems = arithmetic.load(ArithmeticConfig(max_number=LARGEST), seed=1).train
    for problem in problems[:PROBLEMS]:
        steps, said, flaw = arithmetic.steps_of(problem), [problem.question], random.random()
        if flaw < NO_CALL:
            yield said, f"{problem.solution}\n#### {problem.answer}"
            continue
        for step in steps:
            call = f"<calculate>{step.left}{step.operator}{step.right}"
            if flaw < NO_CALL + CUT_CALL:
                yield said, call
                break
            yield said, f"{call}</calculate>"
            said = [*said, f"{call}</calculate>", str(step.result)]
        else:
            yield said, f"#### {problem.answer}"


def games(random: Random) -> Iterator[Turn]:
    for problem in guess.load(seed=1).train[:GAMES]:
        first, last = (cast(int, problem.columns[bound]) for bound in ("low", "high"))
        number, low, high, said = int(problem.answer), first, last, [problem.question]
        for _ in range(TURNS):
            tried = random.randint(first, last) if random.random() < DEAF else random.randint(low, high)
            yield said, f"#### {tried}"
            if tried == number:
                break
            low, high = (max(low, tried + 1), high) if tried < number else (low, min(high, tried - 1))
            said = [*said, f"#### {tried}", "higher" if tried < number else "lower"]


def main(target: Path) -> None:
    random = Random("turns")
    turns = {tuple(said): turn for said, turn in [*calculations(random), *games(random)]}  # a prompt is imitated once
    rows = list(turns.items())
    random.shuffle(rows)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w") as file:
        for said, turn in rows:
            roles = ["user", "assistant"] * len(said)
            messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
            file.write(json.dumps({"question": messages, "solution": turn}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
