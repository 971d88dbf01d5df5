"""A finished run as exports read it: its model's folder, its settings, and its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from slimrl.config.environment import PACKAGES, package_of
from slimrl.config.files import build, read_yaml, settings_of, with_chosen
from slimrl.config.places import DATA, FILES, MODELS, is_hub_name
from slimrl.config.rewards import PROGRAM
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.errors import DataError
from slimrl.model.prompts import PLAIN_STOP, Prompter, make_prompter
from slimrl.model.taught import KEY, Taught, read_taught
from slimrl.runs.reader import DATA as GIVEN
from slimrl.runs.reader import TEST_DATA as GIVEN_TEST
from slimrl.runs.reader import read_json, read_state
from slimrl.tasks.styles import STYLES
from slimrl.terms import ADAPTER, BUILT_IN_MODELS, FINAL, Template
from slimrl.text import counted

ROWS_KEYS = {f"{section}.{key}" for section, key in DATA}
PLACE_KEYS = {f"{section}.{key}" for section, key in (*MODELS, *DATA, *FILES)}
UNTOLD = ("name", "output", "upload", "max_time", "memory_share", "log.", "checkpoint.")
"""Settings, or beginnings of them, that say nothing about a model."""


@dataclass(frozen=True)
class FinishedRun:
    """A run with a model in `final/`."""

    folder: Path
    settings: RootConfig
    """With numbers where `auto` was."""
    record: Mapping[str, Any]
    """run.json."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def model(self) -> Path:
        return self.folder / FINAL

    @property
    def summary(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.record.get("summary", {})
        return found

    @property
    def verb(self) -> str:
        return str(self.record.get("verb", "train"))

    @cached_property
    def taught(self) -> Taught:
        """The note in the model's config.json."""
        return read_taught(read_json(self.model / "config.json").get(KEY))

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(str(self.model))

    @cached_property
    def prompter(self) -> Prompter:
        """The prompts of the measurement."""
        task = self.settings.task
        date = str(self.record.get("date") or task.date)
        template, arguments = self._prompts
        return make_prompter(
            self.tokenizer,
            template,
            arguments=arguments,
            now=datetime.now() if date == "auto" else datetime.fromisoformat(date),
            form=STYLES[task.style].render("", ""),
        )

    @property
    def template_arguments(self) -> Mapping[str, Any]:
        """Arguments of the chat template besides the messages."""
        return self._prompts[1]

    @property
    def _prompts(self) -> tuple[Template, Mapping[str, Any]]:
        task = self.settings.task
        return self.taught.prompts_for(task.template, task.template_arguments, chat=bool(self.tokenizer.chat_template))

    @cached_property
    def instruction(self) -> str:
        """The system message with which the model was measured; empty for none."""
        task = self.settings.task
        if task.instruction != "auto":
            return task.instruction
        taught = self.taught.instruction_for(task.style)
        return STYLES[task.style].instruction_for(task.checker) if taught is None else taught

    @cached_property
    def stop_texts(self) -> list[str]:
        """Texts that ended completions when the model was measured, besides the stop ids."""
        if self.taught.stop is not None:
            return [*self.taught.stop]
        asked = self.settings.rollout.stop  # of a run from before the note
        return ([PLAIN_STOP] if self.plain else []) if asked == "auto" else asked

    @property
    def plain(self) -> bool:
        """True where prompts were plain."""
        return self.prompter.chat is None

    def changed(self) -> dict[str, str]:
        """Settings that differ from their defaults, by dotted key, as `section.key=value` takes them.

        Of paths only the last part is told, and of a judge no address: they concern this machine alone.
        """
        defaults = settings_of(type(self.settings)())
        chosen = self.record.get("chosen", {})
        found = {}
        for key, value in settings_of(self.settings).items():
            if key.startswith(UNTOLD) or key in chosen or value == defaults[key]:
                continue
            found[key] = self.given_rows(str(value)) if key in ROWS_KEYS else ""
            found[key] = found[key] or _told(key, value)
        return found

    def given_rows(self, path: str) -> str:
        """The words for rows that a Python program gave and the run's folder keeps; empty where the path is another one."""
        name = Path(path).name
        stored = self.folder / name
        if name not in (GIVEN, GIVEN_TEST) or not stored.is_file():
            return ""
        with stored.open("rb") as lines:
            return f"{counted(sum(1 for _ in lines), 'row')} that a Python program gave"


def _told(key: str, value: Any) -> str:
    if key in PLACE_KEYS:
        return place_name(str(value))
    if key in ("environment.name", "task.name"):  # the file of a class, or of a package
        package = package_of(str(value))
        return f"{PACKAGES}{place_name(package)}" if package else place_name(str(value)).removeprefix(f"{PROGRAM}:")
    if key == "environment.arguments":
        value = _shortened(value)
    if key == "rewards.custom":
        value = {place_name(spec).removeprefix(f"{PROGRAM}:"): _shortened(reward) for spec, reward in value.items()}
    if key == "rewards.judge":
        value = {name: {**_shortened(judge), "endpoint": "ENDPOINT"} for name, judge in value.items()}
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    """The same with `place_name` of every text in it that is the path of a file or a folder on this machine."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return place_name(value) if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def place_name(path: str) -> str:
    """A name on the Hub as it is, and of a path on this machine its last part."""
    return Path(path).name if path.startswith(("/", "~", ".")) or path.count("/") != 1 else path


def model_name(path: str) -> str:
    """The same of a model; of one that a run left in its folder the name of the run."""
    run = Path(path).parent.name
    left = Path(path).name in (FINAL, ADAPTER) and run not in ("", ".", "..", "~")
    return run if left and not is_hub_name(path) else place_name(path)


def published_adapter(folder: Path) -> str:
    """adapter_config.json of an adapter for others: of the path of its base model, no more than the last part is told."""
    config = read_json(folder / "adapter_config.json")
    base = str(config.get("base_model_name_or_path") or "")
    return json.dumps({**config, "base_model_name_or_path": model_name(base)}, indent=2)


def read_finished(folder: Path) -> FinishedRun:
    """Raises DataError for a folder without a model in `final/`, or without the record of how it came about."""
    if not (folder / FINAL / "config.json").is_file():
        raise DataError(f"{folder} holds no final/ model; give the folder of a finished run")
    record = read_state(folder)
    if not record or not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is no run, it has no run.json or no config.yaml; give the folder of a finished run")
    kind = SftRunConfig if record.get("verb") == "sft" else TrainConfig
    settings = build(kind, read_yaml(str(folder / "config.yaml")), str(folder / "config.yaml"))
    return FinishedRun(folder, with_chosen(settings, record.get("chosen", {})), record)


def declared_license(run: FinishedRun) -> str:
    """The licence in the model card of the base model's folder; empty where it is not known."""
    path = Path(run.settings.model.path)
    if run.settings.model.path in BUILT_IN_MODELS:
        return "apache-2.0"
    for folder in (path, path.parent):  # of a run's final/, the run's own export
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        for line in text.split("---")[1].splitlines() if text.startswith("---") else ():
            if line.startswith("license:"):
                return line.partition(":")[2].strip().strip("\"'")
    return str(read_json(path / "config.json").get("license", ""))
