"""SLURM in small: the commands that a launcher uses, over one folder (FAKE_SLURM) with a file for each job.

Installed under each command's name. A job begins at once, as a process group of its own, or waits for the reason in `hold`; `lose` is a node that dies.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])


def jobs() -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.job"))]


def save(job: dict[str, str]) -> None:
    (FOLDER / f"{job['id']}.job").write_text(json.dumps(job))


def is_there(job: dict[str, str]) -> bool:
    """True while the process of a running job is alive; a zombie is not."""
    try:
        return Path(f"/proc/{job['pid']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def begin(job: dict[str, str]) -> None:
    with open(job["output"], "ab") as log:
        environment = {**os.environ, "SLURM_JOB_ID": job["id"]}
        process = subprocess.Popen(
            ["bash", job["script"]], stdout=log, stderr=log, cwd=job["chdir"], env=environment, start_new_session=True
        )
    save({**job, "pid": str(process.pid), "state": "RUNNING"})


def kill(job: dict[str, str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(job["pid"]), signal.SIGKILL)


def main(command: str, arguments: list[str]) -> None:
    with (FOLDER / "calls").open("a") as calls:
        calls.write(" ".join([command, *arguments]) + "\n")
    options = dict(a.removeprefix("--").partition("=")[::2] for a in arguments if a.startswith("--"))
    number = arguments[-1] if arguments else ""
    chosen = [job for job in jobs() if job["id"] in (number, options.get("jobs"))]
    if command == "sinfo":
        print("n0|main*|2|(null)\nn1|main*|4|gpu:a100:2(S:0),gpu:v100:1\nn1|other|4|gpu:2")
    elif command == "sbatch":
        if options.get("partition") == "none":
            sys.exit("sbatch: error: invalid partition specified: none")
        if (FOLDER / "refuse").exists():
            sys.exit((FOLDER / "refuse").read_text())
        name = str(len(jobs()) + 1)
        (FOLDER / f"{name}.sh").write_text(sys.stdin.read())
        job = {"id": name, "name": options["job-name"], "output": options["output"], "chdir": options["chdir"], "script": f"{FOLDER}/{name}.sh", "state": "PENDING", "pid": "0"}  # fmt: skip
        save(job) if (FOLDER / "hold").exists() else begin(job)
        print(f"{name};cluster")
    elif command == "squeue":
        found = [job for job in chosen or jobs() if job["state"] == "PENDING" or is_there(job)]
        for job in found:
            held = (FOLDER / "hold").read_text() if (FOLDER / "hold").exists() else ""
            if job["state"] == "PENDING" and not held:
                begin(job)  # it has waited long enough
            state = "PENDING|" + held if held else "RUNNING|None"
            print(job["id"] if "jobs" in options else f"{job['id']}|{state}|{job['name']}")
    elif command == "scontrol" and "show" in arguments:
        for job in chosen:
            print(f"JobId={job['id']} JobName={job['name']} JobState={job['state']} Reason=None")
    elif command == "scontrol":
        for job in chosen:
            save({**job, "state": "PENDING"})
            kill(job)
    elif command == "scancel" and "signal" in options:
        for job in chosen:
            os.kill(int(job["pid"]), signal.SIGTERM)
    elif command in ("scancel", "lose"):
        for job in chosen:
            save({**job, "state": "CANCELLED" if command == "scancel" else "NODE_FAIL"})
            if command == "scancel":
                os.kill(int(job["pid"]), signal.SIGTERM)  # as SLURM does before it kills
            else:
                kill(job)


main(Path(sys.argv[0]).name, sys.argv[1:])
