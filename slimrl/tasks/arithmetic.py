"""The built-in task: short word problems in the manner of grade-school maths, made on demand.

A problem is a pure function of (split, seed, index). A hash of the question's text decides to which split it may
belong, so train, test and harder are disjoint by construction, for any seed and any settings.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from slimrl.config.task import ArithmeticConfig
from slimrl.records import Problem
from slimrl.tasks import arithmetic_texts as texts
from slimrl.tasks.arithmetic_texts import Kind, Operator
from slimrl.tasks.draws import Draws
from slimrl.tasks.files import Splits
from slimrl.tasks.made import Made
from slimrl.tasks.styles import Style

Split = Literal["train", "test", "harder"]

TRAIN_PROBLEMS = 2**31
HELD_OUT_PROBLEMS = 100_000
LARGEST_FACTOR = 5  # factors and divisors are 2 to this, as in a first multiplication table
OTHER_NUMBERS = 500  # draws of a twin's numbers; one in eight of its questions may be held out
RAMBLE_STEPS = 10  # worked steps in a rambling text; a step takes six tokens or more, so it overruns a budget of 64


class Step(NamedTuple):
    """One line of a worked solution: left `operator` right = result."""

    left: int
    operator: Operator
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


def load(config: ArithmeticConfig, *, seed: int) -> Splits:
    """The three splits; `seed` decides the training problems only, held-out problems are the same in every run."""
    test, harder = (Problems(config, split, 0, HELD_OUT_PROBLEMS) for split in ("test", "harder"))
    return Splits(Problems(config, "train", seed, TRAIN_PROBLEMS), test, harder)


@dataclass(frozen=True)
class Problems(Made):
    """The word problems of a split."""

    config: ArithmeticConfig
    split: Split
    seed: int
    size: int

    def make(self, index: int) -> Problem:
        name = f"train/{self.seed}/{index}" if self.split == "train" else f"{self.split}/{index}"
        draws = Draws(f"problem/{name}")
        count = self.config.harder_steps if self.split == "harder" else 1 + draws.below(self.config.max_steps)
        while True:
            question, steps, kinds = _compose(draws, count, self.config.max_number)
            if split_of(question) == self.split:
                break
        return Problem(
            id=f"arithmetic/{name}",
            question=question,
            answer=str(steps[-1].result),
            solution=_worked(steps),
            difficulty=float(count),
            columns={"steps": tuple(map(tuple, steps)), "kinds": tuple(kind.name for kind in kinds)},
        )


def split_of(question: str) -> Split:
    """The only split in which this question may appear."""
    bucket = hashlib.blake2b(question.encode(), digest_size=8).digest()[0] % 8
    return "test" if bucket == 0 else "harder" if bucket == 1 else "train"


def apply(left: int, operator: Operator, right: int, limit: int) -> int | None:
    """The result, or None if it is not a whole number of 1 .. limit."""
    if operator == "/":
        result = left // right if left % right == 0 else 0
    else:
        result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return result if 1 <= result <= limit else None


def _compose(draws: Draws, count: int, limit: int) -> tuple[str, list[Step], list[Kind]]:
    """A question of `count` steps, its worked steps and their kinds; every number is 1 to `limit`."""
    things, holder = draws.pick(texts.THINGS), draws.pick(texts.NAMES)
    sentences: list[str] = []
    steps: list[Step] = []
    kinds: list[Kind] = []
    if draws.below(8) == 0:
        kinds.append(draws.pick(texts.OPENINGS))
        (boxes, each), steps = _opening(draws, limit, opens=True)
        value = steps[0].result
        sentences.append(draws.pick(kinds[0].texts).format(a=holder, m=boxes, n=each, things=things))
    else:
        value = 2 + draws.below(limit - 1)
        sentences.append(draws.pick(texts.STARTS).format(a=holder, n=value, things=things))
    asked, other, unnamed = texts.QUESTION, "", [name for name in texts.NAMES if name != holder]
    while len(steps) < count:
        kind = draws.pick(texts.KINDS)
        numbers = _numbers(kind, value, limit)
        if not numbers or (kind.question and len(steps) < count - 1):
            continue  # it cannot follow, or not here
        number, other = draws.pick(numbers), unnamed.pop(draws.below(len(unnamed)))
        sentences.append(draws.pick(kind.texts).format(a=holder, b=other, n=number, things=things))
        result = cast(int, apply(value, kind.operator, number, limit))
        steps.append(Step(value, kind.operator, number, result))
        kinds.append(kind)
        value = result
        if kind.passes_on:
            holder = other
        asked = kind.question or (texts.QUESTION_PASSED_ON if kind.passes_on else texts.QUESTION)
    return " ".join([*sentences, asked.format(a=holder, b=other, things=things)]), steps, kinds


def _numbers(kind: Kind, value: int, limit: int) -> Sequence[int]:
    """The numbers with which a step of this kind can follow `value`."""
    # "has 1 apples" would be wrong English, and "2 times as many" is "twice", which is a kind of its own
    if kind.operator == "+":
        return range(2 if kind.question else 1, limit - value + 1)
    if kind.operator == "-":
        return range(2 if kind.question else 1, value)
    least = 3 if kind.operator == "*" else 2
    candidates = (kind.number,) if kind.number else range(least, LARGEST_FACTOR + 1)
    return [n for n in candidates if apply(value, kind.operator, n, limit) is not None]


def other_numbers(problem: Problem, limit: int) -> tuple[str, str, str] | None:
    """Question, answer and worked solution of a held-out problem with other numbers and the same words.

    It may be in no other split, and its answer is another one; None where no draw gives such a problem.
    """
    steps, split = steps_of(problem), split_of(problem.question)
    named = {kind.name: kind for kind in (*texts.OPENINGS, *texts.KINDS)}
    kinds = [named[name] for name in cast(Sequence[str], problem.columns["kinds"])]
    opens, draws = kinds[0] in texts.OPENINGS, Draws(f"twin/{problem.id}")
    for _ in range(OTHER_NUMBERS):
        numbers, found = _opening(draws, limit, opens=opens)
        value = found[0].result if found else numbers[0]
        for kind in kinds[len(found) :]:
            possible = _numbers(kind, value, limit)
            if not possible:
                break
            number = draws.pick(possible)
            numbers += [] if kind.number else [number]
            found.append(Step(value, kind.operator, number, cast(int, apply(value, kind.operator, number, limit))))
            value = found[-1].result
        else:
            places = iter(numbers)
            question = re.sub(r"[0-9]+", lambda _, new=places: str(next(new)), problem.question)  # type: ignore[misc]
            if value != steps[-1].result and split_of(question) == split:
                return question, str(value), _worked(found)
    return None


def _opening(draws: Draws, limit: int, *, opens: bool) -> tuple[list[int], list[Step]]:
    """The numbers of a first sentence, and its step where it is one."""
    if not opens:
        return [2 + draws.below(limit - 1)], []
    boxes = 2 + draws.below(LARGEST_FACTOR - 1)
    each = 2 + draws.below(limit // boxes - 1)
    return [boxes, each], [Step(boxes, "*", each, boxes * each)]


def demonstrators(config: ArithmeticConfig, style: Style) -> dict[str, Callable[[Problem, int], str]]:
    """Texts to imitate, by name: the right worked solution and six flawed ways to answer.

    Each is a pure function of (problem, draw). If a flaw is impossible (a single step cannot be skipped), the text is the
    right one.
    """
    limit = config.max_number

    def render(steps: Sequence[Step]) -> str:
        return style.render(_worked(steps), str(steps[-1].result))

    return {
        "solution": lambda problem, _: style.render(problem.solution, problem.answer),
        "slip": lambda problem, draw: render(slip(problem, draw, limit)),
        "skips_step": lambda problem, _: render(steps_of(problem)[:-1] or steps_of(problem)),
        "misreads": lambda problem, draw: render(misread(problem, draw, limit)),
        "bare": bare,
        "stops_early": stop_early,
        "rambles": lambda problem, _: style.render(ramble(problem), problem.answer),
    }


def slip(problem: Problem, draw: int, limit: int) -> list[Step]:
    """One step comes out 1 or 2 too high or too low; the rest follows from it."""
    steps = steps_of(problem)
    changed = [
        _carry_on(steps, i, step._replace(result=step.result + error), limit)
        for i, step in enumerate(steps)
        for error in (-2, -1, 1, 2)
    ]
    return _choose(changed, Draws(f"slip/{problem.id}/{draw}")) or steps


def misread(problem: Problem, draw: int, limit: int) -> list[Step]:
    """One phrase is taken for another: "3 fewer" for 3 more, "half" for twice."""
    known = {kind.name: kind.misread for kind in (*texts.OPENINGS, *texts.KINDS)}
    steps = steps_of(problem)
    changed = []
    for i, (step, kind) in enumerate(zip(steps, cast(Sequence[str], problem.columns["kinds"]), strict=True)):
        for operator in known[kind]:
            result = apply(step.left, operator, step.right, limit)
            if result is not None and result != step.result:
                changed.append(_carry_on(steps, i, Step(step.left, operator, step.right, result), limit))
                break
    return _choose(changed, Draws(f"misreads/{problem.id}/{draw}")) or steps


def bare(problem: Problem, draw: int) -> str:
    """Right, without the required form."""
    ending = Draws(f"bare/{problem.id}/{draw}").pick(("", f"\nSo it is {problem.answer}.", f"\n{problem.answer}"))
    return problem.solution + ending


def stop_early(problem: Problem, draw: int) -> str:
    """Ends before the result of a step."""
    steps = steps_of(problem)
    end = Draws(f"stops_early/{problem.id}/{draw}").below(len(steps))
    return _worked(steps[: end + 1]).removesuffix(str(steps[end].result))


def ramble(problem: Problem) -> str:
    """Works the problem out again and again, past a budget of 64 tokens."""
    repeats = -(-RAMBLE_STEPS // len(steps_of(problem)))
    return "\nAgain\n".join([problem.solution] * repeats)


def steps_of(problem: Problem) -> list[Step]:
    """The worked steps of a problem of this task."""
    return [Step(*step) for step in cast(Sequence[tuple[int, Operator, int, int]], problem.columns["steps"])]


def _worked(steps: Sequence[Step]) -> str:
    return "\n".join(map(str, steps))


def _carry_on(steps: Sequence[Step], index: int, changed: Step, limit: int) -> list[Step]:
    """The steps with one of them changed and the later ones worked out from it; empty if one is not possible."""
    if not 1 <= changed.result <= limit:
        return []
    result = [*steps[:index], changed]
    for step in steps[index + 1 :]:
        value = apply(result[-1].result, step.operator, step.right, limit)
        if value is None:
            return []
        result.append(Step(result[-1].result, step.operator, step.right, value))
    return result


def _choose(candidates: Sequence[list[Step]], draws: Draws) -> list[Step]:
    """One of the candidates that are possible; empty if none is."""
    possible = [candidate for candidate in candidates if candidate]
    return draws.pick(possible) if possible else []
