"""A folder belongs to one process at a time, and is free when that process and its children are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimrl.errors import SettingsError
from slimrl.runs.lock import Lock


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        Lock(tmp_path),
        pytest.raises(SettingsError, match=rf"is being worked on by another process \({os.getpid()}\)"),
    ):
        Lock(tmp_path, patience=60)
    assert time.monotonic() - began < 30, "there is nothing to wait for while the holder is alive"
    Lock(tmp_path).release()


def test_a_lock_outlives_its_process_while_a_child_is_alive(tmp_path: Path) -> None:
    """A run that takes a moment to end must not be started again meanwhile."""
    code = (
        "import subprocess, sys; from pathlib import Path; from slimrl.runs.lock import Lock; "
        "lock = Lock(Path(sys.argv[1])); "
        "child = subprocess.Popen(['sleep', '60'], pass_fds=[lock.descriptor], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(child.pid)"
    )
    child = int(subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True).stdout)
    try:
        with pytest.raises(SettingsError, match="is being worked on"):
            Lock(tmp_path, patience=0.3)
    finally:
        os.kill(child, 9)
    with Lock(tmp_path, patience=10):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("left", ["", "nobody", "9" * 20, "\udcff\udcff"])
def test_what_the_file_held_before_does_not_matter(left: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(left, errors="surrogateescape")
    with Lock(tmp_path):
        pass
