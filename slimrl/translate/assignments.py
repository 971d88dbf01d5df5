"""The names that a script binds, and what it changes later in the objects behind them, read as a tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

CONDITIONS = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match, ast.FunctionDef, ast.AsyncFunctionDef,
    ast.Lambda, ast.ClassDef,
)  # fmt: skip
"""Statements whose body need not run, or not at the place where it stands."""


def bound_once(tree: ast.AST) -> dict[str, ast.expr]:
    """The expression of each name that the file assigns once; a name that anything else binds too stands for none."""
    found: dict[str, list[ast.expr | None]] = {}
    for name, value in _bindings(tree):
        found.setdefault(name, []).append(value)
    return {
        name: values[0]
        for name, values in found.items()
        if values[0] is not None and len({value and ast.dump(value) for value in values}) == 1
    }


def _bindings(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Every binding of a name, with the expression where one is assigned to it as it stands."""
    told: set[int] = set()
    for node in ast.walk(tree):
        for target, value in _assignments(node):
            if isinstance(target, ast.Name):
                told.add(id(target))
                yield target.id, value
        match node:
            case ast.AnnAssign(target=target, value=None):  # a type alone binds nothing
                told.add(id(target))
            case ast.AugAssign(
                target=target, op=ast.BitOr(), value=ast.Dict()
            ):  # the same dictionary with more entries
                told.add(id(target))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) if id(node) not in told:
                yield name, None
            case ast.arg(arg=name):
                yield name, None
            case ast.alias(name=name, asname=other):
                yield other or name.partition(".")[0], None
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, None
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, None
            case ast.MatchMapping(rest=str(name)):
                yield name, None


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """The targets of a statement with the expressions that are assigned to them as they stand."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from _pairs(target, value)
        case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
            yield target, value


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """`a, b = 1, 2` as two assignments."""
    sides = (target, value)
    if all(isinstance(side, ast.Tuple | ast.List) for side in sides):
        left, right = (side.elts for side in sides if isinstance(side, ast.Tuple | ast.List))
        if len(left) == len(right) and not any(isinstance(one, ast.Starred) for one in (*left, *right)):
            for one, other in zip(left, right, strict=True):
                yield from _pairs(one, other)
            return
    yield target, value


MUTATORS = ("append", "extend", "insert", "remove", "pop", "clear", "update", "setdefault", "add", "discard", "sort")
"""Methods that change a list, a dictionary or a set."""


def mutated(tree: ast.AST) -> set[str]:
    """The names whose object the file changes after it is made, so its first expression is not its value."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.AugAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in MUTATORS:
                found.add(name)
    return found


class Changes:
    """The settings that a script gives to an object that it has made, as in `args.beta = 0.1` and `settings["beta"] = 0.1`."""

    def __init__(self, tree: ast.AST) -> None:
        self.tree = tree
        self.parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def of(self, holders: set[str], call: ast.Call, *, before: bool) -> Iterator[tuple[str, ast.expr]]:
        """The settings in the objects with these names, set before or after a call, with their expressions.

        Where only running the file would tell the value, or whether it is set at all, the expression is a name that says so.
        """
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.stmt | ast.NamedExpr))
        certain = self._conditions(call)
        for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
            if (node.lineno < call.lineno) != before:
                continue
            maybe = "" if self._conditions(node) <= certain else ", which the file sets under a condition"
            for name, value in _changed(node, holders):
                yield name, ast.Name(f"{ast.unparse(value)}{maybe}") if maybe else value

    def _conditions(self, node: ast.AST) -> set[int]:
        """The statements around a node that decide whether it runs."""
        found = set()
        while (parent := self.parents.get(id(node))) is not None:
            if isinstance(parent, CONDITIONS):
                found.add(id(parent))
            node = parent
        return found


def _changed(node: ast.AST, holders: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """The settings that one statement sets in objects with these names."""
    match node:
        case ast.AugAssign(target=ast.Name(id=holder), op=ast.BitOr(), value=ast.Dict() as merged) if holder in holders:
            yield from entries(merged)
        case ast.AugAssign(target=target) if name := _setting(target, holders):
            yield name, ast.Name(ast.unparse(node))
        case ast.Delete(targets=targets):
            yield from ((name, ast.Constant(None)) for one in targets if (name := _setting(one, holders)))
        case ast.Expr(value=ast.Call() as call):
            yield from _called(call, holders)
        case _:
            for place, value in _assignments(node):
                if name := _setting(place, holders):
                    yield name, value
                elif isinstance(place, ast.Tuple | ast.List):
                    names = (_setting(part, holders) for part in ast.walk(place) if isinstance(part, ast.expr))
                    yield from ((name, ast.Name(ast.unparse(value))) for name in names if name)


def _called(call: ast.Call, holders: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """The settings of `setattr(args, "beta", 0.1)` and of a dictionary's methods."""
    match call:
        case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id=holder), name, value]) if holder in holders:
            yield name.value if isinstance(name, ast.Constant) else ast.unparse(name), value  # type: ignore[misc]
        case ast.Call(func=ast.Attribute(value=ast.Name(id=holder), attr="update"), args=args, keywords=words) if (
            holder in holders
        ):
            for given in [*args, *(word.value for word in words if word.arg is None)]:
                if isinstance(given, ast.Dict):
                    yield from entries(given)
                else:
                    yield f"entries of {holder}", ast.Name(ast.unparse(call))
            yield from ((word.arg, word.value) for word in words if word.arg is not None)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=holder), attr="pop"), args=[ast.Constant(value=name), *_]
        ) if holder in holders:
            yield str(name), ast.Constant(None)


def entries(node: ast.Dict) -> Iterator[tuple[str, ast.expr]]:
    """The entries of a dictionary's expression by their keys; those of another, `**it`, as what is not known."""
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            yield f"**{ast.unparse(value)}", ast.Name(ast.unparse(value))
        else:
            yield str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key), value


def _setting(target: ast.expr, holders: set[str]) -> str:
    """The name of a setting in `args.name` or `settings["name"]`; empty where it is of another object."""
    match target:
        case ast.Attribute(value=ast.Name(id=holder), attr=name) if holder in holders:
            return name
        case ast.Subscript(value=ast.Name(id=holder), slice=key) if holder in holders:
            return str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key)
    return ""
