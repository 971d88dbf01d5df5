"""The terminal of a run, on stderr: the preflight, a row per step with a bar below, a few completions, the closing table.

`Display` is the `Screen` of slimrl/session/listeners.py. Text that a model or a data set wrote never reaches the terminal raw:
control characters are made visible first.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column as Cell
from rich.table import Table
from rich.text import Text

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.config.schema import TrainConfig
from slimrl.display.console import on_stderr
from slimrl.display.measures import unscored_note
from slimrl.display.pace import Pace
from slimrl.machine.profiler import PARTS
from slimrl.preflight.effects import set_by_hand
from slimrl.results import DoctorReport, Evaluation, FormFinding, TrainSummary
from slimrl.tasks import Task as Problems
from slimrl.terms import ADAPTER, FINAL
from slimrl.text import counted, duration, time_taken, turn_titles, visible

WIDTH = 80
"""Characters of the narrowest terminal in which a step is one line."""


@dataclass(frozen=True)
class Column:
    """A column of the step table."""

    title: str
    key: str
    """Of the step's metrics."""
    width: int
    digits: int
    """Behind the point, where the number leaves room for them."""
    percent: bool = False

    def cell(self, value: float) -> str:
        return f"{value:.{self.digits}%}" if self.percent else fitted(value, self.digits, self.width)


COLUMNS = (
    Column("reward", "reward", 6, 3),
    Column("right", "accuracy", 6, 1, percent=True),
    Column("tokens", "completions/mean_length", 6, 1),
    Column("cut off", "completions/clipped_ratio", 7, 1, percent=True),
    Column("entropy", "entropy", 7, 3),
    Column("KL", "kl", 6, 4),
    Column("grad", "grad_norm", 6, 3),
)
KEYS = {"sampled": "accuracy"}
"""Key of a summary by that of a comparison, where they differ."""
NAMES = {"drop": "below their originals", "disputed": "disputed by the independent checker"}
"""Measures of the closing table in words."""
STEP, SPEED, LEFT = 11, 8, 6
"""Widths of the columns around these."""
BAR = 24
"""Width of a bar, which leaves room for the words behind it."""
DRAWN_PER_SECOND = 4
"""Times that the bars are drawn: they share the processor with the run."""
QUIET_SECONDS = 30.0
"""Between two lines on the progress of an evaluation if stderr is not a terminal."""


def fitted(value: float, digits: int, width: int) -> str:
    """A number in at most `width` (5 or more) characters, with fewer digits where it is large."""
    shown = next((text for d in range(digits, -1, -1) if len(text := f"{value:,.{d}f}") <= width), "")
    return shown or next(text for d in (2, 1, 0) if len(text := f"{value:.{d}e}") <= width or d == 0)


class Behind(ProgressColumn):
    """The words behind a bar; for a part of a step with the time since it began, which goes on also while nothing is done."""

    def render(self, task: Task) -> Text:
        since = task.fields["since"]
        clock = f", {duration(time.monotonic() - since)}" if since else ""
        return Text(f"{task.fields['rest']}{clock}", no_wrap=True)


class Display:
    """Human text on stderr; `quiet` shows errors only."""

    def __init__(self, *, quiet: bool = False, samples_every: int = 0, samples: int = 0) -> None:
        self.console = on_stderr(quiet=quiet)
        # A terminal wraps between words; a log file keeps whole lines.
        self.console.soft_wrap = not self.console.is_terminal
        self.samples_every, self.samples = samples_every, samples
        self.titled = False
        self._said: set[str] = set()
        """Notes and warnings that were shown."""
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Cell(no_wrap=True)),
            BarColumn(BAR),
            Behind(table_column=Cell(no_wrap=True)),
            console=self.console,
            refresh_per_second=DRAWN_PER_SECOND,
        )
        names = ("training", "sampling", "measuring")
        self.bar, self.part, self.measuring = (
            self.progress.add_task(name, total=1, visible=False, rest="", since=0.0) for name in names
        )
        self._pace, self._shown = Pace(), 0.0
        """Of an evaluation, and when the last line on it was shown, seconds of the monotonic clock."""

    def say(self, text: str, style: str = "") -> None:
        """A line of our own words; nothing in it is read as markup."""
        self.console.print(Text(visible(text), style=style), soft_wrap=not self.console.is_terminal)

    def note(self, text: str, head: str = "note", style: str = "") -> None:
        """A sentence on the run that is shown once, however often it is found."""
        if text not in self._said:
            self._said.add(text)
            self.say(f"{head}: {text}", style)

    def opening(self, report: DoctorReport, config: TrainConfig) -> None:
        """The preflight: what the model sees, how it stops, and what a probe of completions shows.

        Inert switches that `config` leaves at their defaults are not named; `slimrl doctor --json` has them all.
        """
        self.say("first prompt", "bold")
        self.say(report.first_prompt, "dim")
        stops = [*(f"{text} ({i})" for i, text in report.stop_ids.items()), *map(repr, report.stop_texts)]
        self.say("stops at " + ", ".join(stops))
        self.say(
            f"probe of {report.completions} completions: {report.stop:.0%} stop, {report.parses:.0%} parse, "
            f"{report.right:.0%} right; {report.signal:.0%} of {report.groups} groups carry a signal"
        )
        checked = f"{report.gold_checked} checked against the maximum reward {report.reward_maximum:g}"
        failed = f"{report.gold_failed} cannot earn the maximum" if report.gold_failed else "all earn it"
        self.say(f"gold answers: {checked}, {failed}")
        for note in report.notes:
            self.note(note)
        for warning in report.warnings:
            self.note(warning, "warning", "yellow")
        self._effects(report.inert, report.confounded, config)

    def _effects(self, inert: Sequence[str], confounded: Sequence[str], config: TrainConfig, where: str = "") -> None:
        for sentence in set_by_hand(inert, config):
            self.note(sentence, f"inert{where}", "yellow")
        for sentence in confounded:
            self.note(sentence, f"confounded{where}", "yellow")

    def probes(self, report: DoctorReport) -> None:
        """The sampled completions of a preflight."""
        for sample in report.samples:
            self._sample(sample)

    def forms(self, found: Sequence[FormFinding], advice: str) -> None:
        """The answer forms compared, and the one to take."""
        if not found:
            return
        self.say(f"forms of an answer, each asked for on the same {found[0].problems} problems, greedily", "bold")
        self.say("form      in form   right  lenient  cut off  tokens", "dim")
        for form in found:
            self.say(
                f"{form.style:<9}{form.in_form:>8}{form.right:>8}{form.lenient:>9}{form.cut_off:>9}{form.mean_length:>8.0f}"
            )
        self.note(advice or f"no other form is clearly better than task.style={found[0].style}", "form")

    def evaluating(self, done: int, total: int) -> None:
        """Problems that are done in an evaluation: a bar on a terminal, elsewhere a line now and then."""
        now = time.monotonic()
        if done == 0:
            self._shown = now
        rest = self._pace.left(done, total, now)
        if self.console.is_terminal:
            if done == 0:
                self._start()
            self.progress.update(self.measuring, total=total, completed=done, visible=done < total, rest=rest)
        elif done < total and now - self._shown >= QUIET_SECONDS:
            self._shown = now
            self.say(f"measuring: {done} of {total} problems{rest and f', {rest}'}")

    def sampling(self, done: int, total: int) -> None:
        """Completions of a step that are sampled: a bar on a terminal until the update begins, and nothing elsewhere."""
        self._part("sampling" if done < total else "scoring", done, total, begins=done == 0)

    def updating(self, done: int, total: int) -> None:
        """Completions that the updates of a step are done with: a bar on a terminal until all are, and nothing elsewhere."""
        self._part("updating" if done < total else "", done, total, begins=done == 0)

    def _part(self, name: str, done: int, total: int, *, begins: bool) -> None:
        """The bar of a part of a step; it is only noted here, and drawn by rich's own thread. Without a name it goes."""
        if not self.console.is_terminal or self.console.quiet:
            return
        fields: dict[str, Any] = {"since": time.monotonic()} if begins else {}
        if begins:
            self._start()
        words = f"{done:,} of {total:,} completions"
        self.progress.update(
            self.part, total=total, completed=done, visible=bool(name), description=name, rest=words, **fields
        )

    def evaluation(self, evaluation: Evaluation, when: str | None = None, task: str = "") -> None:
        """One line per split; `when` follows the split's name, by default with the evaluation's step."""
        when = f" after step {evaluation.step}" if when is None else when
        for split, s in evaluation.summaries().items():
            name = f"{task}, {split}" if task else split
            greedy = f", greedy {s['greedy']:.1%}" if "greedy" in s else ""
            self.say(
                f"held out ({name}, {counted(int(s['n']), 'problem')}){when}: {s['accuracy']:.1%} "
                f"[{s['low']:.1%}, {s['high']:.1%}] sampled{greedy}; lenient {s['lenient']:.1%}, "
                f"in form {s['format']:.1%}, cut off {s['truncated']:.1%}, {s['mean_length']:.1f} tokens{_turns(s)}"
                f"{_thinking(s)}{_doubts(s)}{_rewards(s)}",
                "cyan",
            )
            if unscored := unscored_note(name, evaluation, split):
                self.note(unscored, "warning", "yellow")
            if s["truncated"] > 0.5:
                bound = "rollout.max_new_tokens" + (" or environment.turn_tokens" if "turns" in s else "")
                self.note(f"most completions ({name}) were cut off; raise {bound}", "warning", "yellow")

    def step(self, step: int, steps: int, metrics: Metrics, collected: Collected, task: Problems) -> None:
        """A row of the table, the bar, and at every `samples_every`-th step some completions."""
        self._start()
        self.progress.update(self.part, visible=False)  # also where an update broke off
        if not self.titled:
            self.titled = True
            self.say(_row("step", [c.title for c in COLUMNS], "tokens/s", "left"), "bold")
        cells = [column.cell(metrics[column.key]) if column.key in metrics else "-" for column in COLUMNS]
        seconds = metrics["time/total"]
        left = duration(seconds / (step + 1) * (steps - step - 1))
        self.say(_row(f"{step + 1}/{steps}", cells, fitted(metrics["num_tokens"] / seconds, 0, SPEED), left))
        self.progress.update(self.bar, total=steps, completed=step + 1, visible=True, rest=f"{left} left")
        if not collected.groups:
            self.say("no update: no group with a signal within the budget of dynamic sampling", "yellow")
        elif metrics["update/skipped"] == 1.0:
            unscorable = [r.unscorable for g in collected.groups for r in g.rollouts if r.unscorable]
            cause = f"unscorable: {unscorable[0]}" if unscorable else "all truncated, or a float16 gradient overflowed"
            self.say(f"no update: no completion carried loss ({cause})", "yellow")
        elif metrics["sampling/fell_back"]:
            found = f"{metrics['sampling/trained_groups']:.0f} of {collected.wanted}"
            self.say(f"dynamic sampling found {found} groups with a signal and trains on those", "yellow")
        if self.samples_every and (step + 1) % self.samples_every == 0:
            for group in collected.sampled[: self.samples]:
                rollout = group.rollouts[0]
                self._sample(rollout.sample(task.grade(rollout.text, group.problem.answer).extracted_strict))
        if step + 1 == steps:
            self.stop()

    def loss(self, update: int, updates: int, loss: float, seconds: float) -> None:
        """A line on the progress of `slimrl sft`."""
        left = seconds / update * (updates - update)
        self.say(f"{update:>6}/{updates} loss {loss:.4f} nats per token, {duration(left)} left")

    def closing(self, summary: TrainSummary, config: TrainConfig) -> None:
        """The before/after table, the time and memory of the run, its inert switches, and its files.

        Inert switches that `config` leaves at their defaults are not named; run.json has them all.
        """
        self.stop()
        self._held_out_tables(summary)
        if profile := summary.profile:
            shares = ", ".join(f"{part} {profile[part]:.0%}" for part in PARTS if profile[part] >= 0.005)
            self.say(
                f"time: {shares}; {profile['tokens_per_second']:,.0f} sampled tokens/s; "
                f"{profile['flops_utilisation']:.0%} of this machine's arithmetic over the whole step, "
                f"{profile.get('decode_bandwidth_utilisation', 0):.0%} of its memory bandwidth while decoding"
            )
        self.say(time_taken(summary.steps, summary.seconds))
        self.say(
            f"peak memory: {summary.memory['measured']:.2f} GiB, estimated {summary.memory['estimated']:.2f} "
            f"({summary.memory['error']:+.0%})"
        )
        for kind, found in (("unscorable", summary.unscorable), ("unmeasured", summary.unmeasured)):
            for reason, count in found.items():
                self.note(f"{counted(count, 'completion')}: {reason}", kind, "yellow")
        self._effects(summary.inert, summary.confounded, config, " in this run")
        path = Path(summary.run)
        parts = ", ".join(f"{part}/" for part in (FINAL, ADAPTER, "rollouts", "evals") if (path / part).is_dir())
        self.say(f"everything is in {path}: {parts}, metrics.jsonl, curves.png; slimrl show {path} opens its page")

    def _held_out_tables(self, summary: TrainSummary) -> None:
        """Accuracies, shares and drops in %, and below them rewards in their own units."""
        shares = _of_changes()
        rewards: dict[str, Table] = {}
        ends = {"test": (summary.before, summary.after)}
        for split, both in (("harder", summary.harder), ("twins", summary.twins)):
            ends |= {split: (both["before"], both["after"])} if both else {}
        for split, changes in summary.difference.items():
            for measure, change in changes.items():
                before, after = ends[split]
                if "rewards/" in measure:
                    mode, name = "greedy" if measure.startswith("greedy") else "sampled", measure.partition("/")[2]
                    cells = (measured(end, measure, 1) for end in ends[split])
                    table = rewards.setdefault(name, _of_changes(titled=False))
                    table.add_row(f"  {split}, {mode}", *cells, _change(change, 1))
                elif measure != "disputed" or before.get(measure) or after.get(measure):
                    cells = (measured(end, KEYS.get(measure, measure), 100) for end in ends[split])
                    shares.add_row(f"{split}, {NAMES.get(measure, measure)}", *cells, _change(change, 100))
        self.say("strict held-out accuracy in %, with 95 % intervals", "bold")
        self.console.print(shares)
        if rewards:
            self.say("rewards held out, with 95 % intervals", "bold")
            self.console.print(_of_changes())
        for name, table in rewards.items():
            self.say(name)
            self.console.print(table)
        for sentence in summary.findings:
            self.note(sentence, "finding", "yellow")

    def _start(self) -> None:
        """Put the bars on the screen, where it is one."""
        if self.console.is_terminal and not self.console.quiet and not self.progress.live.is_started:
            self.progress.start()

    def stop(self) -> None:
        """Take the bar off the screen."""
        self.progress.update(self.part, visible=False)
        if self.progress.live.is_started:  # else rich prints an empty line into a file
            self.progress.stop()

    def _sample(self, sample: Mapping[str, Any]) -> None:
        """A completion as `Rollout.sample` has it; of an episode every turn."""
        said = sample.get("turns", (("assistant", sample["text"]),))
        titles = (
            turn_titles([role for role, _ in said], sample["turn_rewards"]) if "turns" in sample else ["completion"]
        )
        # Indented, so that no completion can pass its own lines off as ours.
        for title, body in [("question", sample["question"]), *zip(titles, (text for _, text in said), strict=True)]:
            self.say(f"{title}:\n" + textwrap.indent(body, "    ", lambda _: True), "dim")
        found = f"extracted {sample['extracted']!r}, gold {sample['answer']!r}"
        self.say(f"{found}, reward {sample['reward']:.2f}", "dim")


def _of_changes(*, titled: bool = True) -> Table:
    """An empty table of changes, whose columns stand below those of others."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=titled)
    table.add_column("", min_width=15, overflow="fold")
    for title in ("before", "after", "paired change"):
        table.add_column(title, no_wrap=True, min_width=20, overflow="fold")
    return table


def _row(step: str, cells: Sequence[str], speed: str, left: str) -> str:
    """A line of the step table, no longer than WIDTH for up to 99,999 steps."""
    middle = " ".join(f"{cell:>{column.width}}" for cell, column in zip(cells, COLUMNS, strict=True))
    return f"{step:>{STEP}} {middle} {speed:>{SPEED}} {left:>{LEFT}}"


def _thinking(summary: dict[str, float]) -> str:
    """The part of the completions that is thinking, where some think."""
    if "thinking_length" not in summary:
        return ""
    return f", {summary['thinking_length']:.1f} of them thinking, {summary['thinking_truncated']:.1%} cut off in it"


def measured(summary: Mapping[str, float], key: str, scale: float) -> str:
    """A measure of a summary with its interval, where it has one there."""
    if key not in summary:
        return "-"
    ends = next((pair for pair in _ends(key) if pair[0] in summary), ())
    digits = 1 if scale > 1 else 2
    value, *interval = (f"{scale * summary[name]:.{digits}f}" for name in (key, *ends))
    return f"{value} [{', '.join(interval)}]" if interval else value


def _ends(key: str) -> tuple[tuple[str, str], ...]:
    if key == "accuracy":
        return (("low", "high"),)
    return (f"{key}/low", f"{key}/high"), (f"{key}_low", f"{key}_high")


def _change(difference: Mapping[str, float], scale: float) -> str:
    change, low, high = (scale * difference[key] for key in ("change", "low", "high"))
    digits = 1 if scale > 1 else 2
    return f"{change:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _rewards(summary: Mapping[str, float]) -> str:
    """The means of rewards, and the share that they could not score, at the end of a line on an evaluation."""
    names = [key for key in summary if key.startswith("rewards/") and f"{key}/least" in summary]
    scores = [f"{key.removeprefix('rewards/')} {fitted(summary[key], 3, WIDTH)}" for key in names]
    lost = f", unscorable {summary['unscorable']:.1%}" if summary.get("unscorable") else ""
    return visible(f"; rewards: {', '.join(scores)}{lost}") if scores else ""


def _turns(summary: Mapping[str, float]) -> str:
    return f", {summary['turns']:.2f} turns" if "turns" in summary else ""


def _doubts(summary: Mapping[str, float]) -> str:
    """The share that the independent checker disputes, where it is above 0, and the drop on twins."""
    disputed = f", disputed {summary['disputed']:.1%}" if summary.get("disputed") else ""
    if "drop" not in summary:
        return disputed
    ends = f"[{100 * summary['drop_low']:+.1f}, {100 * summary['drop_high']:+.1f}]"
    return f"{disputed}; {100 * summary['drop']:+.1f} {ends} points below their originals"
