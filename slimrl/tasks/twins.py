"""Perturbed twins: a problem with other numbers and the answer that follows from them.

A model that can do a problem can do its twin; one that knows the problem cannot. A twin is a pure function of its original. The
built-in task makes twins itself; of SVAMP the equation beside each problem tells what follows from its numbers.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from slimrl.records import TWIN, Problem
from slimrl.tasks import arithmetic
from slimrl.tasks.draws import Draws

ATTEMPTS = 1000
"""Draws of numbers, of which the first that gives a problem of the same kind is taken."""
LONGEST_EQUATION = 200
_NUMBER = re.compile(r"(?<![\w.,/-])\d+(?![\w/-]|[.,]\d)")
_ANY_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def twin_of(problem: Problem, name: str, *, limit: int) -> Problem | None:
    """The twin of a problem of the task `name`; None where it has none that is surely right.

    `limit` is the largest number of the built-in task.
    """
    found = arithmetic.other_numbers(problem, limit) if name == "arithmetic" else _by_equation(problem)
    if found is None:
        return None
    question, answer, solution = found
    columns = {**problem.columns, "original": problem.id}
    return replace(problem, id=problem.id + TWIN, question=question, answer=answer, solution=solution, columns=columns)


def _by_equation(problem: Problem) -> tuple[str, str, str] | None:
    """Question, answer and equation with other numbers.

    The numbers of the equation are replaced, all others stay. There is no twin where the question has not each of them once
    and in digits, where the equation does not give the gold answer, or where a result on the way is no positive whole number.
    Numbers keep their order and how many digits they have: nobody gives away more than there is, and no sum gets longer.
    """
    question, equation = problem.question, problem.solution
    spoken = [*_NUMBER.finditer(question)]
    written = [match[0] for match in re.finditer(r"\d+(?:\.\d+)?", equation)]
    values = [Fraction(number) for number in written]
    steps = evaluated(equation)
    whole = len(spoken) == len(_ANY_NUMBER.findall(question)) and all(value.denominator == 1 for value in values)
    if not steps or not whole or not problem.answer.isdecimal() or steps[-1] != int(problem.answer):
        return None
    numbers = [int(match[0]) for match in spoken]
    if len({*numbers}) < len(numbers) or len({*values}) < len(values) or not all(map(_counts, steps)):
        return None
    if not {*values} <= {*numbers}:
        return None
    changed = [number for number in numbers if number in values and number > 1]
    draws = Draws(f"twin/{problem.id}")
    for _ in range(ATTEMPTS):
        new = {number: _near(draws, number) for number in changed}
        drawn = [new.get(number, number) for number in numbers]
        other = _written(equation, new)
        found = evaluated(other)
        if _order(drawn) == _order(numbers) and all(map(_counts, found)) and found[-1] != steps[-1]:
            return _spoken(question, new), str(found[-1]), other
    return None


def evaluated(equation: str) -> list[Fraction]:
    """The results of an equation's operations, its own last; empty where it is none of + - * / over numbers."""
    found: list[Fraction] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return Fraction(node.value)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
            raise ValueError
        left, right = value(node.left), value(node.right)
        match _OPERATORS[type(node.op)]:
            case "+":
                result = left + right
            case "-":
                result = left - right
            case "*":
                result = left * right
            case _:
                result = left / right
        found.append(result)
        return result

    try:
        value(ast.parse(equation.strip()[:LONGEST_EQUATION], mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return []
    return found


def _counts(value: Fraction) -> bool:
    return value.denominator == 1 and value > 0


def _near(draws: Draws, number: int) -> int:
    """A number of about the same size with as many digits, at least 2."""
    decade = 10 ** (len(str(number)) - 1)
    least, most = max(2, decade, math.ceil(0.6 * number)), min(10 * decade - 1, math.floor(1.6 * number) + 1)
    return int(least + draws.below(most + 1 - least))


def _spoken(question: str, new: Mapping[int, int]) -> str:
    return _NUMBER.sub(lambda match: str(new.get(int(match[0]), match[0])), question)


def _written(equation: str, new: Mapping[int, int]) -> str:
    """The equation with other numbers, each as a whole number in its way: 76.0."""
    return re.sub(
        r"\d+(?:\.\d+)?", lambda match: f"{new.get(int(float(match[0])), match[0])}.0".replace(".0.0", ".0"), equation
    )


def _order(numbers: Sequence[int]) -> list[int]:
    """The places of numbers by their size; of equal ones none has a place of its own."""
    ranked = sorted({*numbers})
    return [ranked.index(number) for number in numbers]
