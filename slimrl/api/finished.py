"""The results of calls, read from what they left on the disk."""

from __future__ import annotations

import importlib.util
import webbrowser
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrl.errors import DataError
from slimrl.runs.reader import read_metrics, read_state, read_summaries
from slimrl.runs.remote import local_run
from slimrl.terms import FINAL
from slimrl.text import counted, percent, signed, signed_points, visible

if TYPE_CHECKING:
    from slimrl.api.asking import Answer
    from slimrl.results import Comparison, Evaluation


@dataclass(frozen=True)
class Change:
    """A paired difference with its 95 % interval."""

    value: float
    """0.125 is 12.5 points of accuracy."""
    low: float
    high: float
    n: int
    """Problems."""

    def __str__(self) -> str:
        ends = f"[{signed(self.low)}, {signed(self.high)}]"
        return f"{signed_points(self.value)} {ends} on {counted(self.n, 'problem')}"


@dataclass(frozen=True)
class Result:
    """A finished run; everything is read from its folder when it is asked for, and the folder is all that it needs."""

    path: Path
    """The folder of the run; any path is taken, and an address on object storage, of whose run this is the local copy."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", local_run(str(self.path)))

    @property
    def verb(self) -> str:
        """`train` or `sft`, as run.json has it."""
        return str(read_state(self.path).get("verb", "train"))

    @property
    def summary(self) -> dict[str, Any]:
        """The summary in run.json, as `slimrl train --json` prints it; raises DataError where there is none."""
        found = read_state(self.path).get("summary")
        if not isinstance(found, dict):
            raise DataError(f"{self.path}/run.json holds no summary; restore it, or train again")
        return found

    @cached_property
    def _evaluations(self) -> list[Evaluation]:
        from slimrl.api.measuring import bounds_of_run
        from slimrl.runs.measured import read_evaluations

        found = [*read_evaluations(self.path, up_to=int(self.summary["steps"]), bounds=bounds_of_run(str(self.path)))]
        if not found:
            raise DataError(f"{self.path}/evals holds no evaluation; restore it, or train again")
        return found

    @property
    def before(self) -> Evaluation:
        """The held-out evaluation before the first step, with every completion; raises DataError where it is lost."""
        return self._evaluations[0]

    @property
    def after(self) -> Evaluation:
        """The held-out evaluation after the last step."""
        return self._evaluations[-1]

    @cached_property
    def changes(self) -> Comparison:
        """Paired changes by split, and of each by measure: `changes["test"]["greedy"]`."""
        from slimrl.results import compare

        return compare(self.before, self.after)

    @property
    def change(self) -> Change:
        """The paired change of strict held-out accuracy, sampled, on the test problems."""
        return as_change(self.changes["test"]["sampled"])

    @property
    def records(self) -> list[dict[str, float]]:
        """The metrics of every step (docs/metrics.md)."""
        return read_metrics(self.path)

    @property
    def metrics(self) -> Any:
        """The same as a DataFrame where pandas is installed, else the records."""
        if importlib.util.find_spec("pandas") is None:
            return self.records
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(self.records)

    @property
    def findings(self) -> tuple[str, ...]:
        """Notable sentences on the course of the run."""
        return tuple(self.summary.get("findings", ()))

    @cached_property
    def model(self) -> Any:
        """The trained model, loaded by transformers; raises DataError where log.model=false kept none."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self._final)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that goes with `model`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._final)

    @property
    def _final(self) -> str:
        if not (self.path / FINAL).is_dir():
            raise DataError(f"{self.path} holds no model (log.model=false); train again with log.model=true")
        return str(self.path / FINAL)

    def sample(self, prompt: str, n: int = 1, *, greedy: bool = False, **settings: Any) -> list[Answer]:
        """Completions of the trained model for one question, as `slimrl.sample` gives them."""
        from slimrl.api.asking import sample_of

        return sample_of(str(self.path), prompt, n, greedy=greedy, settings=settings)

    def show(self) -> Path:
        """Open the run's page in a browser; returns its path, and raises DataError where there is none."""
        return show_page(self.path / "report.html")

    def __repr__(self) -> str:
        try:
            return "\n".join([f"<slimrl.Result {visible(str(self.path))}>", *headlines(self)])
        except (DataError, KeyError) as error:
            return f"<slimrl.Result {visible(str(self.path))}: {error}>"

    def _repr_html_(self) -> str:
        from slimrl.api.html import as_html

        try:
            steps = counted(int(self.summary["steps"]), "step")
            return as_html(f"{self.path}, {steps}", self.findings, table_of(self), self.curves())
        except (DataError, KeyError) as error:
            return as_html(str(self.path), [str(error)])

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Held-out accuracy, and the training reward or the loss, as pairs of a step and a value."""
        measured = read_summaries(self.path)
        key, name = ("reward", "training reward") if self.verb == "train" else ("loss", "loss, nats per token")
        return {
            "held-out accuracy": [(step, found["test"]["accuracy"]) for step, found in measured.items() if found],
            name: [(row["step"], row[key]) for row in self.records if key in row],
        }


def as_change(change: dict[str, float]) -> Change:
    """A paired difference of slimrl/statistics.py as a record."""
    return Change(change["change"], change["low"], change["high"], int(change["n"]))


def headlines(result: Result) -> list[str]:
    """The course of a run in a few lines: accuracy before and after by split, rewards, findings."""
    lines = [f"{counted(int(result.summary['steps']), 'step')} in {result.summary['seconds']:.0f} s of training"]
    lines += [f"{visible(name)}: {before} -> {after}, {change}" for name, before, after, change in table_of(result)[1:]]
    return [*lines, *(f"finding: {visible(sentence)}" for sentence in result.findings)]


def table_of(result: Result) -> list[tuple[str, ...]]:
    """Accuracy before and after by split, and the rewards of the test problems, with titles in the first row."""
    rows: list[tuple[str, ...]] = [("held out", "before", "after", "paired change")]
    for split, changes in result.changes.items():
        ends = [end.splits[split].summary() for end in (result.before, result.after)]
        shares = (f"{percent(end['accuracy'])} %" for end in ends)
        rows.append((f"{split}, accuracy", *shares, str(as_change(changes["sampled"]))))
        for name, change in changes.items():
            if name.startswith("rewards/"):
                means = (f"{end[name]:.3g}" for end in ends)
                value, low, high = (f"{change[key] + 0.0:+.3g}" for key in ("change", "low", "high"))
                rows.append((f"{split}, {name.removeprefix('rewards/')}", *means, f"{value} [{low}, {high}]"))
    return rows


def show_page(page: Path) -> Path:
    """Open a page in a browser; raises DataError where it is not there."""
    if not page.is_file():
        raise DataError(f"{page}: there is no such page; slimrl show {page.parent} makes it")
    webbrowser.open(page.resolve().as_uri())
    return page
