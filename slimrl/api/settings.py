"""Settings from recipes and keyword arguments, merged and validated as files and section.key=value are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from slimrl.config.files import for_verb, merge, nested, read_yaml
from slimrl.config.places import anchored
from slimrl.config.recipes import SIGN, named
from slimrl.config.schema import RootConfig

Place = str | os.PathLike[str]
Recipes = Place | Sequence[Place]
"""One or several of `dapo`, `@dapo` and the path of a settings file."""


def from_recipes(kind: type[RootConfig], recipes: Recipes) -> dict[str, Any]:
    """Recipes and files, merged left to right, without the settings of other verbs; raises SettingsError."""
    merged: dict[str, Any] = {}
    for recipe in [recipes] if isinstance(recipes, str | os.PathLike) else recipes:
        file = recipe_file(recipe)
        merged = merge(merged, anchored(for_verb(kind, read_yaml(file)), Path(file).parent))
    return merged


def recipe_file(recipe: Place) -> str:
    """The file that a recipe's name stands for, or a path as it is; raises SettingsError for a name that is none."""
    text = os.fspath(recipe)
    if isinstance(recipe, os.PathLike) or text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return text
    return named(SIGN + text.removeprefix(SIGN), "recipes")


def from_keywords(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments, which name sections, settings or `section.key`, as the nested mapping of a file; later ones win."""
    merged: dict[str, Any] = {}
    for key, value in settings.items():
        merged = merge(merged, nested(key, plain(value)))
    return merged


def plain(value: Any) -> Any:
    """A value as a file has it: sections as mappings, paths as text, tuples as lists, numbers of NumPy as Python's."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted key of every setting in a nested mapping."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
