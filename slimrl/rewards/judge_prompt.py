"""The prompt of a judge, and the text that it makes of a row."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimrl.config.judge import JudgeReward
from slimrl.errors import SettingsError
from slimrl.rewards.outcomes import Unscored

NAMES = re.compile(r"\{(\{)?([A-Za-z_]\w*)\}(?(1)\})")


def read_prompt(name: str, config: JudgeReward) -> str:
    """The prompt in the settings or in their file; raises SettingsError where it cannot be read or does not hold {completion}."""
    text = config.prompt
    if config.prompt_file:
        try:
            text = Path(config.prompt_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise SettingsError(
                f"rewards.judge.{name}.prompt_file={config.prompt_file}: {reason}; name a text file"
            ) from None
    if ("", "completion") not in NAMES.findall(text):
        raise SettingsError(
            f"rewards.judge.{name}: the prompt does not hold {{completion}}, so the judge sees none; add it (doubled braces "
            "stand for themselves)"
        )
    return text


def filled(prompt: str, row: Mapping[str, Any]) -> str | Unscored:
    """The request's text, its names in braces replaced in one pass, so that braces in a completion stay what they are."""
    singular = {"prompts": "prompt", "completions": "completion"}
    values = {singular.get(name, name): value for name, value in row.items() if name != "completion_ids"}
    unknown = [name for doubled, name in NAMES.findall(prompt) if not doubled and name not in values]
    if unknown:
        return Unscored(
            f"has a prompt with {{{unknown[0]}}}, and the row has {', '.join(sorted(values))}",
            remedy=f"name one of these, or write {{{{{unknown[0]}}}}} for the braces themselves",
        )
    return NAMES.sub(lambda found: f"{{{found[2]}}}" if found[1] else _text(values[found[2]]), prompt)


def _text(value: object) -> str:
    """A value in a prompt."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
