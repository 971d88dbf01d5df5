"""Studies from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrl.api.finished import show_page
from slimrl.api.guest import guest
from slimrl.api.rewards import CHANGED, Rewards, read_rewards
from slimrl.api.settings import Place, from_keywords, plain, recipe_file
from slimrl.config.files import merge
from slimrl.config.recipes import SIGN, named
from slimrl.errors import DataError, SettingsError
from slimrl.text import counted, visible

if TYPE_CHECKING:
    from slimrl.study.results import Results
    from slimrl.study.spec import Expanded

Plan = Place | Sequence[Place] | Mapping[str, Any]
"""Names of studies or files of them, or the contents of such a file as a mapping."""


@dataclass(frozen=True, repr=False)
class Study:
    """A study whose runs are done."""

    path: Path
    """The folder with its runs and its reports."""
    results: Results
    """Every number of the report."""

    @property
    def answer(self) -> tuple[str, ...]:
        """The answer to the study's question, in sentences."""
        from slimrl.report.prose import answer

        return answer(self.results)

    def show(self) -> Path:
        """Open the report in a browser; returns its path."""
        return show_page(self.path / "report.html")

    def __repr__(self) -> str:
        return "\n".join([f"<slimrl.Study {visible(str(self.path))}>", *map(visible, self.answer)])

    def _repr_html_(self) -> str:
        from slimrl.api.html import as_html

        return as_html(str(self.path), self.answer)


def study(
    plan: Plan,
    *,
    rewards: Rewards | None = None,
    name: str = "",
    seeds: int = 0,
    slots: int = 0,
    on: str = "local",
    output: Place = "runs",
    quiet: bool = False,
    **settings: Any,
) -> Study:
    """Do what is left of a study, and write its report; the same call goes on after any interruption.

    Args:
        plan: a study's name, as `quick`, a file, several of them that are merged, or a mapping with the keys of a file
            (docs/studies.md): `{"base": ["gsm8k"], "arms": {"no_std": "algorithm.scale_rewards=none"}}`.
        rewards: of all arms, as in `train`, but only what another process can load: names, and functions of a file or a module.
        name: of the study's folder; by default its files' names.
        seeds: runs of every arm; 0: as the plan has it.
        slots: runs at once; 0: what the machine or the cluster bears.
        on: where the runs are computed, as `slimrl study run --on` takes it: `"ray"`, `"slurm:gpu,gpus=1"` (docs/studies.md).
        output: the folder that holds the study's folder.
        quiet: show nothing; otherwise progress goes to stderr.
        settings: of all arms, as in `train`.

    Raises SettingsError and DataError, the latter also where runs failed, and KeyboardInterrupt on Ctrl-C.
    """
    from slimrl.study.declaration import check_study
    from slimrl.study.upload import demand_folder

    found = read_rewards(rewards)
    if found.changed:
        raise SettingsError(
            f"rewards: {found.changed[0]} {CHANGED}; the runs of a study are processes that load the file: restart the program"
        )
    given = found.settings
    chosen = from_keywords(settings)
    expanded = _expanded(plan, name, seeds, merge({"rewards": given}, chosen) if given else chosen)
    for spec in (spec for arm in expanded.arms for spec in arm.config.rewards.of_the_program):
        raise SettingsError(
            f"rewards: no other process can load {spec.rpartition(':')[2]}, and the runs of a study are processes of their own; "
            "write the function into a file and import it, or name it as 'file.py:function'"
        )
    demand_folder(os.fspath(output))
    folder = Path(os.fspath(output)) / expanded.name
    check_study(expanded, folder)
    with guest():
        results = _results(expanded, folder, slots, on, quiet=quiet or sys.stderr is None)
    return Study(folder, results)


def _expanded(plan: Plan, name: str, seeds: int, settings: Mapping[str, Any]) -> Expanded:
    """The study with its arms; raises SettingsError."""
    from slimrl.study.spec import make_study, read_studies

    folders: dict[str, Path] = {}
    if isinstance(plan, Mapping):
        if not name:
            raise SettingsError("name is empty; give the study a name, under which its folder is found again")
        own = plain(plan)
        base = own.pop("base", [])
        base = [recipe_file(entry) for entry in ([base] if isinstance(base, str) else base)]
        merged, file = own, f"the study {name}"
    else:
        files = [_file(entry) for entry in ([plan] if isinstance(plan, str | os.PathLike) else plan)]
        merged, base, folders = read_studies(files)
        file, name = files[0], name or "-".join(Path(entry).stem for entry in files).lower()
    if seeds:
        merged["seeds"] = seeds
    if settings:
        merged["settings"] = merge(merged.get("settings") or {}, settings)
    return make_study(merged, base, folders=folders, file=file, name=name)


def _file(plan: Place) -> str:
    text = os.fspath(plan)
    is_file = isinstance(plan, os.PathLike) or text.endswith((".yaml", ".yml")) or Path(text).is_file()
    return text if is_file else named(SIGN + text.removeprefix(SIGN), "studies")


def _results(expanded: Expanded, folder: Path, slots: int, on: str, *, quiet: bool) -> Results:
    from slimrl.display.study import ProgressDisplay
    from slimrl.report.report import write_reports
    from slimrl.study import place
    from slimrl.study.results import collect
    from slimrl.study.runner import run_study
    from slimrl.study.upload import upload_study

    display = ProgressDisplay(expanded, folder, quiet=quiet)
    try:
        failed = run_study(expanded, folder, slots=slots, display=display, place=place.Place.read(on))
    finally:
        display.stop()
    results = collect(expanded, folder)
    write_reports(results, folder)
    upload_study(expanded, folder, display.say)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise DataError(f"{counted(len(failed), 'run')} failed ({names}); correct the cause and call this again")
    return results
