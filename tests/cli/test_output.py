"""Standard output belongs to the data of a command, whatever a user's code prints in its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOUD = """
import os, subprocess

class Loud:
    def step(self, text):
        print("printed")
        os.write(1, b"written\\n")
        subprocess.run(["echo", "started"])
        return [], True
"""


def test_json_stands_alone_on_standard_output(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    command = [sys.executable, "-m", "slimrl", "sample", "builtin-tools", "2+3", "--json"]
    settings = [f"environment.name={tmp_path}/loud.py:Loud", "environment.workers=0", "rollout.max_new_tokens=8"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["question"] == "2+3"
    assert {"printed", "written", "started"} <= set(done.stderr.split())


def test_a_reader_that_leaves_ends_the_command_in_silence() -> None:
    code = (
        "import os, sys\n"
        "from slimrl.cli.output import keep_output, out\n"
        "from click.exceptions import Exit\n"
        "keep_output()\n"
        "try:\n"
        "    for _ in range(10000): out('x' * 100)\n"
        "except Exit as stop: sys.exit(stop.exit_code)\n"
        "sys.exit(5)\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'{{ "{sys.executable}" -c "$0"; echo $? >&2; }} | head -n 1', code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("x" * 100 + "\n", "0\n")
