"""The same as tests/runs/test_remote.py, on a server that speaks S3, with the commands of a user. Skipped where its packages are
not installed: pip install s3fs 'moto[server]'.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT

needed = ("s3fs", "moto", "flask")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install s3fs 'moto[server]'")
SMALL = (
    "steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "evaluation.problems=2", "evaluation.harder_problems=0",
    "evaluation.greedy=false",
)  # fmt: skip
SECRET = "PlantedAwsSecretK7MDENGbPxRfiCY"
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KILLED = """
import os, sys
from pathlib import Path
from slimrl.runs import remote
left = [2]
def between(done, total):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
remote.AT_ONCE = 4
remote.copy_run(Path(sys.argv[1]), sys.argv[2], between)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which s3:// is a server of this machine with the bucket `bucket`, and the cache is a new one with the
    kernels that are compiled already.
    """
    cache = tmp_path_factory.mktemp("cache")
    (cache / "slimrl").mkdir(mode=0o700)
    for kernels in (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimrl").glob("kernels-*"):
        (cache / "slimrl" / kernels.name).symlink_to(kernels)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        own = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        found = {**os.environ, **own}
        code = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
        subprocess.run([sys.executable, "-c", code], env=found, check=True)
        yield found
        server.terminate()


VERBS = """
import contextlib, io, json, sys
from slimrl.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, code, out, err = ["slimrl", *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def slimrl(folder: Path, environment: dict[str, str], *verbs: Sequence[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of commands, in one process, since most of the time goes into starting one."""
    command = [sys.executable, "-c", VERBS, json.dumps(verbs)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


def test_a_run_is_copied_to_s3_and_read_from_there(
    tmp_path: Path, environment: dict[str, str], tiny_folder: Path
) -> None:
    train = ("train", f"model.path={tiny_folder}", *SMALL, "name=a")
    bad, unready, done, listed, shown, here, compared = slimrl(
        tmp_path,
        environment,
        (*train, "upload=s3://no-such-bucket/runs"),
        ("doctor", *train[1:], "upload=s3://no-such-bucket/runs"),
        (*train, "upload=s3://bucket/runs"),
        ("runs", "s3://bucket/runs", "--json"),
        ("show", "s3://bucket/runs/a", "--text"),
        ("show", "runs/a", "--text"),
        ("compare", "runs/a", "s3://bucket/runs/a", "--json"),
    )
    assert bad[0] == 2
    assert "upload: s3://no-such-bucket/runs/a cannot be written (The specified bucket does not exist); check" in bad[2]
    assert unready[0] == 2
    assert (
        "upload: s3://no-such-bucket/runs cannot be written (The specified bucket does not exist); check" in unready[2]
    )
    assert done[0] == 0, done[2]
    assert "to s3://bucket/runs/a" in done[2].splitlines()[-1]
    (row,) = json.loads(listed[1])
    assert (row["run"], row["state"], row["steps"]) == ("s3://bucket/runs/a", "finished", 1)
    assert shown[1] == here[1] != ""
    assert json.loads(compared[1])["models"] == ["runs/a", "s3://bucket/runs/a"]

    killed = [sys.executable, "-c", KILLED, str(tmp_path / "runs" / "a"), "s3://bucket/killed/a"]
    assert subprocess.run(killed, env=environment, check=False).returncode == -signal.SIGKILL
    half, again, exported = slimrl(
        tmp_path,
        environment,
        ("show", "s3://bucket/killed/a", "--text"),
        ("train", "--resume", "runs/a", "upload=s3://bucket/killed"),
        ("export", "s3://bucket/killed/a", "mine"),
    )
    assert "no run that has ended" in half[2]
    assert (again[0], exported[0]) == (0, 0), (again, exported)
    weights = tmp_path / "runs" / "a" / "final" / "model.safetensors"
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == weights.read_bytes()
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in repr((bad, done, listed, shown, compared, half, again, exported))
