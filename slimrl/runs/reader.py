"""The only reader of what a run writes into its directory: run.json, metrics.jsonl and evals/.

It needs no torch, so that studies and reports start fast. It does not know what the records are read for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from slimrl.config.files import read_yaml
from slimrl.config.rewards import is_programs
from slimrl.errors import DataError, SettingsError

Status = Literal["running", "finished", "diverged", "failed", "interrupted", "preempted"]
"""Of a run, as run.json has it."""
ENDED: tuple[Status, ...] = ("finished", "diverged")
"""A run with one of these is over; any other can be resumed."""
DATA, TEST_DATA, MODEL = "data.jsonl", "test.jsonl", "model"
"""In a run's folder: rows and a loaded model that a Python program gave it."""
_called: ContextVar[bool] = ContextVar("called", default=False)
"""A Python program called SlimRL."""


def read_settings(run: Path) -> dict[str, Any]:
    """config.yaml of a run. Data and a model that lie in its folder are found there, also after the folder was moved.

    Raises SettingsError where it cannot be read.
    """
    found = read_yaml(str(run / "config.yaml"))
    for section, key in (("task", "path"), ("task", "test_path"), ("model", "path")):
        table = found.get(section)
        stored = Path(str(table.get(key, ""))) if isinstance(table, dict) else Path()
        own = run.resolve() / stored.name
        if stored.name in (DATA, TEST_DATA, MODEL) and not stored.exists() and own.exists():
            found[section] = {**found[section], key: str(own)}
    return found


def read_state(run: Path) -> dict[str, Any]:
    """run.json; empty if there is none that can be read."""
    return read_json(run / "run.json")


@contextmanager
def called_by_a_program() -> Iterator[None]:
    """Within the block, and in this thread, `way_to_resume` gives calls of Python."""
    token = _called.set(True)
    try:
        yield
    finally:
        _called.reset(token)


def way_to_resume(run: Path, *, force: bool = False) -> str:
    """The command that resumes a run, with `force` though software or rewards changed; for a program that called SlimRL, and
    where rewards or the environment are of the program that began the run, the call.
    """
    verb = read_state(run).get("verb", "train")
    try:
        settings = read_settings(run)
        custom, name = settings.get("rewards", {}).get("custom", {}), settings.get("environment", {}).get("name", "")
    except (SettingsError, AttributeError):
        custom, name = {}, ""
    arguments = ", rewards=[...]" if any(is_programs(str(spec)) for spec in custom) else ""
    arguments += ", environment=Class" if is_programs(str(name)) else ""
    if not arguments and not _called.get():
        return f"slimrl {verb} --resume {shlex.quote(str(run))}{' --force' if force else ''}"
    text = json.dumps(str(run), ensure_ascii=False)  # a literal of Python too
    return f"slimrl.{verb}(resume={text}{arguments}{', force=True' if force else ''})"


def read_status(run: Path) -> str:
    """A `Status`; empty if there is no run.json that can be read."""
    return str(read_state(run).get("status", ""))


def read_chosen(run: Path) -> dict[str, Any]:
    """The values that a run chose where its settings say `auto`, by dotted key."""
    return dict(read_state(run).get("chosen", {}))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without a last line that a kill cut off; empty if there is no such file.

    Raises DataError if the file is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return [{key: float(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{path} is damaged; restore it, or start the run anew under another name") from None


def count_steps(run: Path) -> int:
    """The number of whole rows of metrics.jsonl, which are not parsed: fast enough to ask often."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def read_summaries(run: Path) -> dict[int, dict[str, Any]]:
    """The summaries of all evaluations, by step and then by split; one that cannot be read is empty."""
    files = ((file.stem.removeprefix("step-"), file) for file in sorted((run / "evals").glob("step-*.json")))
    return {int(number): read_json(file) for number, file in files if number.isdecimal()}


def read_answers(run: Path, step: int) -> list[dict[str, Any]]:
    """Every completion of the evaluation after `step` with its verdicts; empty if the file cannot be read."""
    try:
        text = (run / "evals" / f"step-{step:08d}.jsonl").read_text(encoding="utf-8")
        # only \n ends a line: a JSON string may hold U+2028 and other line ends
        return [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError):
        return []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
