"""The reference outside of the memory that an update needs: its weights are read once a step, before there are gradients.

On a CPU they lie in a nameless file that is mapped into memory, and their pages are given back after every use: a pass finds them
in the system's cache of files, which makes room for anything else. On a GPU they lie in the host's memory and are copied over.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import SAMPLED
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.machine.limits import return_freed_blocks
from slimrl.model.policy import Policy
from slimrl.records import Plan

ALIGNMENT = 64
"""Bytes: what the widest vectors of a CPU ask for."""


class Offloaded:
    """The parameters of a frozen module, which have values only while they are `in_use`."""

    def __init__(self, module: nn.Module, folder: Path) -> None:
        """Move the parameters out; on a CPU into a file in `folder`, or among temporary files where there is no such folder.

        Raises SettingsError where the disk has no room for them.
        """
        self.parameters = list(module.parameters())
        self.device = self.parameters[0].device
        self.pages: mmap.mmap | None = None
        self.host: list[Tensor] = []
        if self.device.type == "cpu":
            self._map(folder)
        else:
            self.host = [parameter.detach().cpu().pin_memory() for parameter in self.parameters]
            self._forget()

    def _map(self, folder: Path) -> None:
        sizes = [-(-parameter.nbytes // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        try:
            with tempfile.TemporaryFile(dir=folder if folder.is_dir() else None) as file:
                # A mapped file without blocks of its own would end the process where the disk is full.
                os.posix_fallocate(file.fileno(), 0, sum(sizes))
                self.pages = mmap.mmap(file.fileno(), sum(sizes))
        except OSError as error:
            raise SettingsError(
                f"optimizer.reference_offload: {sum(sizes) / 2**30:.1f} GiB of the reference do not fit into {folder} "
                f"({error.strerror}); free some, choose another output, or set optimizer.reference_offload=off"
            ) from error
        offset = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            place = torch.frombuffer(self.pages, dtype=parameter.dtype, count=parameter.numel(), offset=offset)
            parameter.data = place.view(parameter.shape).copy_(parameter.data)
            offset += size
        self._forget()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the parameters have their values; on a CPU the memory of freed gradients makes room first."""
        if self.pages is not None:
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
    if reason and setting == "on":
        raise SettingsError(f"optimizer.reference_offload=on has no effect {reason}; remove it")
    return (False,) if reason else {"auto": (False, True), "on": (True,)}[setting]
