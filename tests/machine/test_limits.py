"""What the machine is asked, and told."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


def test_freed_blocks_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: blocks below one still in use are freed, and are gone only if glibc was told to give them back."""
    code = """
import sys, torch
from slimrl.machine.limits import blocks_can_be_settled, settle_freed_blocks, used_memory
settle_freed_blocks(given_back=sys.argv[1] == "give")
device = torch.device("cpu")
warm = [torch.ones(2**21) for _ in range(2)]; del warm  # as a process that has freed such blocks before
blocks = [torch.ones(2**21) for _ in range(40)]
full = used_memory(device)
del blocks[:-1]
print(blocks_can_be_settled(), full - used_memory(device))
"""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))]:
        monkeypatch.delenv(name)
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc's")

    def run(how: str) -> list[str]:
        command = [sys.executable, "-c", code, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    told, freed = run("give")
    assert told == "True"
    assert int(freed) > 0.9 * 39 * 2**23
    assert int(run("keep")[1]) < 2**23
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**30))
    assert run("give")[0] == "False"
