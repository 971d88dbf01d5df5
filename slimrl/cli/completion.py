"""Completions in a shell: names of recipes and studies, settings and their choices, run folders; files otherwise.

click makes the script for the shell (docs/commands.md has the line), but for bash (`slimrl/cli/bash.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from slimrl.errors import SlimError
from slimrl.terms import BUILT_IN_MODELS

if TYPE_CHECKING:
    from slimrl.config.recipes import Kind

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def arguments_of(kind: Kind, *, runs: bool = False) -> Complete:
    """The completion of files and settings; `runs` completes run folders too."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(text) for text in _matching(_candidates(kind, incomplete), incomplete)]
        if runs or ctx.params.get("resume"):
            found += complete_runs(incomplete)
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def run_argument(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The completion of MODEL_OR_RUN: run folders and the built-in model, else folders."""
    found = complete_runs(incomplete)
    found += [CompletionItem(text) for text in _matching(BUILT_IN_MODELS, incomplete)] if incomplete else []
    return found or [CompletionItem(incomplete, type="file")]


def complete_runs(incomplete: str) -> list[CompletionItem]:
    """Run folders under the folder that the text names, or under runs/."""
    folder = Path(incomplete if incomplete.endswith("/") else incomplete.rpartition("/")[0] or "runs")
    if not folder.is_dir():
        return []
    runs = [str(entry) for entry in sorted(folder.iterdir()) if (entry / "run.json").is_file()]
    return [CompletionItem(run) for run in _matching(runs, incomplete)]


def _candidates(kind: Kind, incomplete: str) -> Sequence[str]:
    """Everything that the text may become."""
    from slimrl.config.files import describe_settings
    from slimrl.config.recipes import SIGN, names

    if incomplete.startswith(SIGN):
        try:
            return [SIGN + name for name in names(kind)]
        except SlimError:
            return []
    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{row['key']}=" for row in describe_settings()] if incomplete else []
    types = {row["key"]: str(row["type"]) for row in describe_settings()}
    choices = types.get(key, "").split(" | ")
    return [f"{key}={choice}" for choice in choices] if len(choices) > 1 else []


def _matching(texts: Sequence[str], incomplete: str) -> list[str]:
    return [text for text in texts if text.startswith(incomplete)]
