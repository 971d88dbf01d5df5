"""SlimRL: reinforcement learning with verifiable rewards for small language models.

    import slimrl

    result = slimrl.train(model="builtin", steps=10)

docs/python.md has the whole interface. Names are imported when they are asked for, so that importing the package needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from slimrl.machine.threads import settle_waiting

if TYPE_CHECKING:
    from slimrl import terms as terms
    from slimrl.api.asking import Answer as Answer
    from slimrl.api.finished import Change as Change
    from slimrl.api.finished import Result as Result
    from slimrl.api.runs import sft as sft
    from slimrl.api.runs import train as train
    from slimrl.api.studies import Study as Study
    from slimrl.api.studies import study as study
    from slimrl.api.verbs import Compared as Compared
    from slimrl.api.verbs import compare as compare
    from slimrl.api.verbs import evaluate as evaluate
    from slimrl.api.verbs import sample as sample
    from slimrl.errors import DataError as DataError
    from slimrl.errors import DivergedError as DivergedError
    from slimrl.errors import SettingsError as SettingsError
    from slimrl.errors import SlimError as SlimError
    from slimrl.errors import StoppedError as StoppedError
    from slimrl.results import Evaluation as Evaluation

__version__ = "0.1.0"

settle_waiting()  # before any module of the package imports torch

PLACES = {
    "slimrl.api.runs": ("train", "sft"),
    "slimrl.api.verbs": ("evaluate", "compare", "sample", "Compared"),
    "slimrl.api.studies": ("study", "Study"),
    "slimrl.api.finished": ("Result", "Change"),
    "slimrl.api.asking": ("Answer",),
    "slimrl.results": ("Evaluation",),
    "slimrl.errors": ("SlimError", "SettingsError", "DataError", "DivergedError", "StoppedError"),
}
"""The public names by the module that has them."""
MODULES = {name: module for module, names in PLACES.items() for name in names}
__all__ = [*MODULES, "__version__", "terms"]


class _Package(ModuleType):
    """The package, some of whose functions have names of its modules: importing the module must not replace the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "terms":
        return import_module("slimrl.terms")
    if name not in MODULES:
        raise AttributeError(f"module 'slimrl' has no attribute {name!r}")
    found = getattr(import_module(MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
