"""The built-in environment `python`: a tool that runs programs in the sandbox."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pydantic import ValidationError

from slimrl.config.sandbox import SandboxConfig
from slimrl.errors import SettingsError
from slimrl.sandbox import Sandbox

_FENCED = re.compile(r"\s*```(?:python|py)?[ \t]*\n(.*?)(?:```\s*)?\Z", re.DOTALL)
"""A program between the marks of a block of Markdown."""


class Python:
    """An episode with one tool; a turn that does not call it ends the episode.

    Args:
        limits: settings of the section `sandbox`, such as `cpu_seconds`; their defaults otherwise.
    """

    def __init__(self, **limits: Any) -> None:
        try:
            settings = SandboxConfig(**limits)
        except ValidationError as error:
            fault = error.errors()[0]
            raise SettingsError(f"environment.arguments.{fault['loc'][0]}: {fault['msg']}; correct it") from None
        self._sandbox = _sandbox(settings.model_dump_json())
        self.tools = [self.python]

    def python(self, code: str) -> str:
        """Run a Python program. It sees nothing of earlier ones.

        Args:
            code: the program, which prints what is to be known
        """
        fenced = _FENCED.match(code)
        return self._sandbox.start(fenced[1] if fenced else code).result().printed


@cache
def _sandbox(settings: str) -> Sandbox:
    """One for all episodes, so that `workers` bounds the programs that they run at the same time."""
    return Sandbox(SandboxConfig.model_validate_json(settings))
