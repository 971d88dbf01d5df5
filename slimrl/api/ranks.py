"""A call of a Python program as the leader of several processes (`devices`)."""

from __future__ import annotations

import os
import sys

from slimrl.config.rewards import is_programs
from slimrl.config.schema import RootConfig
from slimrl.errors import SettingsError


def demand_leader() -> None:
    """Raises SettingsError in a program that is a rank of torchrun's."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            "a Python program cannot be a rank of a run; give devices=N, or start the command slimrl with torchrun"
        )


def demand_processes(config: RootConfig) -> None:
    """Raises SettingsError where the other processes that `devices` asks for cannot be joined, or cannot make the environment."""
    if config.devices == 1:
        return
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        raise SettingsError(
            f"devices={config.devices} makes a process group of torch.distributed, and this program has one already; set "
            "devices=1, or destroy it before"
        )
    if is_programs(config.environment.name):
        raise SettingsError(
            f"devices={config.devices}: other processes cannot load {config.environment.name}, a class of this program; "
            "set devices=1, or write the class into a file"
        )
