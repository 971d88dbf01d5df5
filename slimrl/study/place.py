"""The places that compute a study's runs: this machine, a cluster of Ray, or the queue of SLURM (`--on`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from slimrl.config.mistakes import nearest
from slimrl.errors import SettingsError
from slimrl.study.launcher import Launcher, LocalLauncher, Room, Slots
from slimrl.study.on_slurm import RESERVED, SlurmLauncher
from slimrl.study.on_slurm import room as room_of_partition
from slimrl.text import counted

FORMS = "local, ray, ray://HOST:PORT, ray:HOST:PORT, slurm or slurm:PARTITION, then ,cpus=N,gpus=N for each run"


@dataclass(frozen=True)
class Place:
    """The place that computes a study's runs, and the part of it that each run gets."""

    kind: Literal["local", "ray", "slurm"] = "local"
    target: str = ""
    """The address of a Ray cluster, or a partition of SLURM; empty for the default one."""
    cpus: int = 0
    """CPUs of a run; 0: as many as its threads."""
    gpus: float = 0.0
    """GPUs of a run; for Ray it may be a fraction."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of sbatch without their dashes."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `--on` takes: FORMS. Raises SettingsError."""
        where, *assigned = text.split(",")
        if where.startswith("ray://"):
            kind, target = "ray", where
        else:
            kind, _, target = where.partition(":")
        if kind not in ("local", "ray", "slurm") or (kind == "local" and (target or assigned)):
            raise SettingsError(
                f"--on={text} is no place for runs{nearest(kind, ('local', 'ray', 'slurm'))}; it takes {FORMS}"
            )
        options = dict(_assignment(text, entry) for entry in assigned)
        cpus = _number(text, "cpus", options.pop("cpus", "0"))
        gpus = _number(text, "gpus", options.pop("gpus", "0"))
        if cpus % 1 or (gpus % 1 and (kind == "slurm" or gpus > 1)):
            raise SettingsError(
                f"--on={text}: cpus and gpus are whole numbers, except for a fraction of a GPU with ray; correct it"
            )
        if taken := [name for name in options if name in RESERVED]:
            raise SettingsError(
                f"--on={text}: {taken[0]} is set by SlimRL, which submits one job for each run; remove it"
            )
        if kind == "ray" and options:
            raise SettingsError(
                f"--on={text}: Ray takes cpus and gpus of a run, and not {', '.join(options)}; remove it"
            )
        return cls(kind, target, int(cpus), gpus, options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "local":
            return "on this machine"
        name = {"ray": "Ray", "slurm": "SLURM"}[self.kind]
        return f"on {name}{f' ({self.target})' if self.target else ''}"

    def portion(self, threads: int) -> str:
        """The CPUs and GPUs of a run in words; on this machine runs have its GPUs in turn."""
        cpus = counted(threads, "CPU thread")
        if self.kind == "local" or self._asks_otherwise:
            return cpus
        return f"{cpus} and {f'{self.gpus:g} of a GPU' if 0 < self.gpus < 1 else counted(int(self.gpus), 'GPU')}"

    @property
    def _asks_otherwise(self) -> bool:
        """GPUs are asked for by an option of sbatch."""
        return any(name.startswith(("gres", "gpus")) for name in self.options)

    def room(self) -> Room:
        """The machines of the cluster. Raises SettingsError where it cannot be reached."""
        if self.kind == "ray":
            from slimrl.study.on_ray import room

            return room(self.target)
        return room_of_partition(self.target)

    def slots(self, wanted: int, *, threads: int, devices: int = 1) -> Slots:
        """`wanted` slots, or for 0 as many as the cluster has room for; `threads` of each of the `devices` of a run, or 0 for the
        number of its CPUs.
        """
        if (self.gpus > 1 or devices > 1) and self.gpus not in (0, devices):
            raise SettingsError(
                f"gpus={self.gpus:g} in --on, but the study's runs use devices={devices}; give both the same number"
            )
        if self.cpus % devices:
            raise SettingsError(
                f"cpus={self.cpus} in --on cannot be shared by devices={devices} of a run; set a multiple of it"
            )
        if threads and self.cpus and threads * devices != self.cpus:
            each_has = f"{threads} threads each" if devices == 1 else f"{threads} threads on each of {devices} devices"
            raise SettingsError(
                f"cpus={self.cpus} in --on, but the study's runs have {each_has}, on which the last bits of their results "
                f"depend; set cpus={threads * devices}, or give the study another --name"
            )
        each, room = self.cpus or (threads or 1) * devices, self.room()
        fitting = room.cpus // each
        if self.gpus:
            fitting = min(fitting, int(room.gpus / self.gpus + 1e-9))
        if not fitting or each > room.cpus_of_a_node:
            raise SettingsError(
                f"the cluster has {room.cpus} CPUs ({room.cpus_of_a_node} in its largest node) and {room.gpus:g} GPUs, which is "
                f"not enough for a run with {each} CPUs and {self.gpus:g} GPUs; ask for less in --on"
            )
        on_gpus = self.gpus or self._asks_otherwise
        share = min(1.0, self.gpus or 1.0) if on_gpus else each / room.cpus_of_a_node
        return Slots(wanted or fitting, each // devices, share, devices=devices)

    def launcher(self, slots: Slots, lock: int) -> Launcher:
        """Starts jobs here; `lock` is the descriptor of the study's lock."""
        if self.kind == "ray":
            from slimrl.study.on_ray import RayLauncher

            return RayLauncher(self.target, slots, gpus=self.gpus)
        if self.kind == "slurm":
            return SlurmLauncher(self.target, slots, gpus=int(self.gpus), options=self.options)
        return LocalLauncher(slots, lock)


HERE = Place()


def _assignment(text: str, entry: str) -> tuple[str, str]:
    name, is_set, value = entry.partition("=")
    if not is_set or not re.fullmatch(r"[a-z][a-z-]*", name):
        raise SettingsError(f"--on={text}: {entry!r} is no option=value; it takes {FORMS}")
    return name, value


def _number(text: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise SettingsError(f"--on={text}: {name} takes a number, and not {value!r}; correct it")
    return number
