"""The built-in environment `calculator`: a tool that computes."""

import re
from fractions import Fraction

LONGEST = 100
"""Characters of an expression, and digits of a result."""
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")


class Calculator:
    """An episode with one tool; a turn that does not call it ends the episode."""

    def __init__(self) -> None:
        self.tools = [calculate]


def calculate(expression: str) -> str:
    """Compute an expression exactly.

    Args:
        expression: whole numbers with + - * / and brackets, such as (3+4)*12
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression is longer than {LONGEST} characters")
    tokens, place = [], 0
    while rest := expression[place:].strip():
        found = _TOKEN.match(expression, place)
        if found is None:
            raise ValueError(f"{rest[0]!r} belongs to no expression")
        tokens.append(found[1])
        place = found.end()
    parser = _Parser(tokens)
    value = parser.sum()
    if parser.rest:
        raise ValueError(f"{parser.rest[0]!r} is out of place")
    if len(str(value.numerator)) > LONGEST:
        raise ValueError(f"the result has more than {LONGEST} digits")
    return str(value)


class _Parser:
    """Recursive descent over tokens; every result is a fraction in lowest terms."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens

    def sum(self) -> Fraction:
        value = self.product()
        while self.rest[:1] in (["+"], ["-"]):
            value = value + self.product() if self.rest.pop(0) == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.rest[:1] in (["*"], ["/"]):
            if self.rest.pop(0) == "*":
                value *= self.factor()
            elif divisor := self.factor():
                value /= divisor
            else:
                raise ValueError("division by zero")
        return value

    def factor(self) -> Fraction:
        token = self.rest.pop(0) if self.rest else "the end"
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            if self.rest[:1] != [")"]:
                raise ValueError("a bracket is not closed")
            self.rest.pop(0)
            return value
        if not token.isdigit():
            raise ValueError(f"{token!r} is out of place")
        return Fraction(int(token))
