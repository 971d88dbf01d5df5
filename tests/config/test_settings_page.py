"""docs/settings.md is what the settings say of themselves: `python -m tests.config.test_settings_page` writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel

from slimrl.api.measuring import UNREAD
from slimrl.config.base import Needs, Section, subsection, walk
from slimrl.config.files import describe_settings
from slimrl.config.judge import JudgeReward
from slimrl.config.mistakes import type_words
from slimrl.config.rewards import CustomReward
from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"
VERBS: dict[str, type[Section]] = {"slimrl train": TrainConfig, "slimrl sft": SftRunConfig, "slimrl eval": EvalConfig}
GIVEN: dict[str, type[Section]] = {"rewards.custom.NAME": CustomReward, "rewards.judge.NAME": JudgeReward}
"""What stands under a name of the user's."""
TOP = """\
# Settings

Every setting with its type, default and meaning. The page is generated from the settings themselves; `slimrl settings WORD` searches the
same texts on the command line, and `slimrl settings SECTION` lists a section.

```yaml
# mine.yaml
steps: 100
rollout: {problems: 16, group_size: 8}
```
```
slimrl train mine.yaml rollout.problems=32 "rollout.stop=['Question:']"
```

Files are merged from left to right, then `section.key=value`, whose value is read as YAML. Paths in a file are relative to that file, those of
`section.key=value` to the working directory, as is `output` everywhere. An unknown key, a setting that would do nothing, and a combination that
cannot work are refused before a run begins, or named in a note. Where `optimizer.learning_rate` and `rollout.max_new_tokens` are `auto`, the `config.yaml` of the run has the numbers that
were chosen ([defaults](defaults.md)), and `run.json` the plan of memory. On the command line `section={}` takes back what files say of a section. In another library's words: [names](names.md).
"""


def words(text: str) -> str:
    """A doc string as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def type_cell(kind: type[BaseModel], name: str) -> str:
    """The type of a setting, its choices as code."""
    said = type_words(kind, name)
    choices = said.split(" | ")
    return " ".join(f"`{choice}`" for choice in choices) if len(choices) > 1 else words(said)


def row(key: str, kind: type[Section], name: str, *, anchor: bool = True) -> str:
    field = kind.model_fields[name]
    needs = kind.marked(Needs).get(name)
    meaning = words(field.description or "") + (f" Only with `{needs}`{needs.bound(kind)}." if needs else "")
    default = "" if field.is_required() else f"`{words(json.dumps(field.get_default()))}`"
    place = f'<a id="{key}"></a>' if anchor else ""
    return f"| {place}`{key}` | {type_cell(kind, name)} | {default} | {meaning} |"


def readers(section: str) -> str:
    """The commands that have a section."""
    first = section.partition(".")[0]
    verbs = [verb for verb, root in VERBS.items() if first in root.model_fields]
    found = [f"`{verb}`" for verb in verbs if section not in UNREAD or VERBS[verb] is not EvalConfig]
    return f"Read by {', '.join(found[:-1])} and {found[-1]}." if len(found) > 1 else f"Read by {found[0]} only."


def settings_page() -> str:
    """docs/settings.md."""
    meanings = {"": "These stand outside of any section."}
    tables: dict[str, list[str]] = {"": []}
    for key, (kind, name) in {key: (kind, name) for root in VERBS.values() for key, kind, name in walk(root)}.items():
        if subsection(kind, name):
            tables[key], meanings[key] = [], f"{words(kind.model_fields[name].description or '')} {readers(key)}"
        else:
            tables[key.rpartition(".")[0]].append(row(key, kind, name))
    for section, kind in GIVEN.items():
        meanings[section] = words(kind.__doc__ or "")
        tables[section] = [row(f"{section}.{name}", kind, name, anchor=False) for name in kind.model_fields]
    lines = [TOP]
    for section, rows in tables.items():
        lines += [
            f"## {section or 'The run'}",
            "",
            meanings[section],
            "",
            "| setting | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run python -m tests.config.test_settings_page"


def test_every_setting_is_on_the_page_once_with_its_meaning() -> None:
    found = re.findall(r'^\| <a id="([^"]+)"></a>`\1` \| .+ \| `.*` \| (.+) \|$', settings_page(), re.MULTILINE)
    assert len(found) == len(dict(found))
    assert {key: words(row["meaning"]) for row in describe_settings() for key in [row["key"]]} == {
        key: meaning.partition(" Only with `")[0] for key, meaning in found
    }


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
