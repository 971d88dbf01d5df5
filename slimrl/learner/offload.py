"""The reference outside of the memory that an update needs: its weights are read once a step, before there are gradients.

On a CPU they lie in a nameless file that is mapped into memory, and their pages are given back after every use: a pass finds them
in the system's cache of files, which makes room for anything else. On a GPU they lie in the host's memory and are copied over.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import SAMPLED
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.machine.limits import in_memory, return_freed_blocks
from slimrl.model.policy import Policy
from slimrl.records import Plan

ALIGNMENT = 64
"""Bytes: what the widest vectors of a CPU ask for."""


class Offloaded:
    """Frozen parameters that have values only while they are `in_use`."""

    def __init__(self, parameters: Sequence[nn.Parameter], folder: Path | None) -> None:
        """Move the values into a nameless file in a folder, or without one into the host's memory.

        Raises SettingsError where the file system has no room for them.
        """
        self.parameters = parameters
        self.device = parameters[0].device
        self.pages: mmap.mmap | None = None
        self.host: list[Tensor] = []
        if folder is not None:
            self._map(folder)
        else:
            copies = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
            self.host = [copy.pin_memory() for copy in copies] if self.device.type == "cuda" else copies
        self._forget()

    def _map(self, folder: Path) -> None:
        sizes = [-(-parameter.nbytes // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # A mapped file without blocks of its own would end the process where the disk is full.
                os.posix_fallocate(file.fileno(), 0, sum(sizes))
                self.pages = mmap.mmap(file.fileno(), sum(sizes))
        except OSError as error:
            raise SettingsError(
                f"optimizer.reference_offload: the reference, {sum(sizes) / 2**30:.1f} GiB, cannot be written into {folder} "
                f"({error.strerror}); choose another output, or set optimizer.reference_offload=off"
            ) from error
        offset = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            place = torch.frombuffer(self.pages, dtype=parameter.dtype, count=parameter.numel(), offset=offset)
            parameter.data = place.view(parameter.shape).copy_(parameter.data)
            offset += size

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the parameters have their values; on a CPU the memory of freed gradients makes room first."""
        if self.device.type == "cpu":
            return_freed_blocks()
        for parameter, values in zip(self.parameters, self.host, strict=False):
            parameter.data = values.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        if self.pages is not None:
            self.pages.madvise(mmap.MADV_DONTNEED)
            return
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)


def offload_reference(reference: Policy, policy: Policy, folder: Path) -> Offloaded:
    """Move out the weights of a reference that are not the policy's as well: on a CPU into a file in `folder`, on a GPU into the
    host's memory.
    """
    shared = {id(parameter) for parameter in policy.model.parameters()}
    own = [parameter for parameter in reference.model.parameters() if id(parameter) not in shared]
    return Offloaded(own, folder if policy.device.type == "cpu" else None)


def ways_to_hold(config: RootConfig, policy: Policy, kept: Plan | None, teacher: Policy | None) -> tuple[bool, ...]:
    """The ways to hold the reference that the settings leave, in the order in which they are tried; raises SettingsError for
    `optimizer.reference_offload=on` where nothing can be offloaded.
    """
    setting = config.optimizer.reference_offload
    if not isinstance(config, TrainConfig) or setting == "off":
        return (False,)
    if kept is not None and setting == "auto":
        return (kept.offload,)
    reason = ""
    if not config.algorithm.kl_coef:
        reason = "without algorithm.kl_coef, which alone asks for a reference"
    elif config.algorithm.kl_estimator not in SAMPLED:
        reason = f"with algorithm.kl_estimator={config.algorithm.kl_estimator}, which reads the reference in every micro-batch"
    elif teacher is None and policy.lora is not None:
        reason = "beside an adapter, whose reference shares the weights of the policy"
    elif policy.device.type == "cpu":
        reason = _no_file(Path(config.output))
    if reason and setting == "on":
        raise SettingsError(f"optimizer.reference_offload=on has no effect {reason}; remove it")
    return (False,) if reason else {"auto": (False, True), "on": (True,)}[setting]


def _no_file(folder: Path) -> str:
    """The reason for which a file in a folder would save no memory; empty where it does."""
    if not hasattr(os, "posix_fallocate") or not hasattr(mmap, "MADV_DONTNEED"):
        return "on this system, which does not give back the pages of a mapped file"
    if in_memory(folder):
        return f"where files in output={folder} lie in memory themselves (tmpfs)"
    return ""
