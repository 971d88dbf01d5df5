"""What becomes of TRL's GRPOTrainer under kill -9, SIGTERM, damaged checkpoints and hostile rewards.

Run with the interpreter of TRL's environment, from the repository's root:

    peers/trl/bin/python benchmarks/reliability/trl_battery.py [--batteries NAME ...] [--out FILE]

Runs of 24 steps (4 problems of the built-in task x 4 completions of at most 32 tokens, the built-in model, CPU) with a
checkpoint every 4 steps, all within one epoch unless said otherwise, resumed as its documentation says. Each battery prints
its cases on stderr; the table comes last. A file that exists keeps the batteries that were not asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import say, table

from trl_process import JOB, Run, equal, same_values

Case = dict[str, Any]
SECONDS = 6.0
"""In which a kill comes after training has begun; an undisturbed run trains about that long."""


# ------------------------------------------------------------------------------------------------------------ kill -9


def kills(folder: Path, args: argparse.Namespace) -> Case:
    """One kill for each run, two for every third."""
    moments = random.Random(args.seed)
    result: Case = {}
    for name, count, changes, aim in (
        ("random moment", args.kills, {}, False),
        ("random moment, num_iterations=2", args.kills, {"updates": 2}, False),
        ("random moment, num_iterations=3", max(1, args.kills // 3), {"updates": 3}, False),
        ("random moment, two epochs", max(1, args.kills // 2), {"rows": 64}, False),
        ("while a checkpoint is written", args.kills, {}, True),
    ):
        undisturbed, again = (undisturbed_run(folder / f"undisturbed-{i}", **changes) for i in (0, 1))
        cases = []
        for number in range(count):
            run = Run(folder / "killed", **changes)
            times = 2 if number % 3 == 2 and not aim else 1
            aimed = [at_file(moments) if aim else at_moment(moments, SECONDS / times) for _ in range(times)]
            case = killed_run(run, aimed) | equal(undisturbed, run, JOB["steps"])
            say(f"{name} {number}: {case}")
            cases.append(case)
            shutil.rmtree(run.folder)
        result[name] = {"undisturbed runs equal": equal(undisturbed, again, JOB["steps"]), "cases": cases}
    return result


def undisturbed_run(folder: Path, **changes: Any) -> Run:
    """The same settings are run once only."""
    run = Run(Path("-".join(map(str, (folder, *changes, *changes.values())))), **changes)
    if not run.result():
        run.start()
        run.wait()
    return run


def at_moment(moments: random.Random, seconds: float) -> Callable[[Run], str]:
    """Kill at a random moment of the training."""
    delay = moments.uniform(0, seconds)

    def act(run: Run) -> str:
        run.wait_for_training()
        time.sleep(delay)
        return f"{delay:.2f} s" if run.kill() else ""

    return act


def at_file(moments: random.Random) -> Callable[[Run], str]:
    """Kill as soon as so many files of a random checkpoint are there."""
    step, files = moments.choice(range(4, 25, 4)), moments.randint(1, 11)

    def act(run: Run) -> str:
        checkpoint = run.output / f"checkpoint-{step}"
        while run.process.poll() is None:
            if checkpoint.exists() and len(list(checkpoint.iterdir())) >= files:
                run.kill()
                run.wait()
                return f"checkpoint-{step} with {len(list(checkpoint.iterdir()))} files"
        return ""

    return act


def killed_run(run: Run, aimed: list[Callable[[Run], str]]) -> Case:
    """Killed, started again until it is done; a checkpoint that cannot be resumed from is deleted, as a user would."""
    case: Case = {"killed": [], "errors": [], "resumed at": []}
    waiting = list(aimed)
    for _ in range(len(aimed) + 6):
        newest = max(run.checkpoints(), default=0)
        run.start()
        at = waiting.pop(0)(run) if waiting else ""
        if at:
            case["killed"].append(at)
        ended = run.wait()
        if ended.code == 0 or at:
            case["resumed at"].append(newest)
        if ended.code == 0:
            break
        if not at:
            case["errors"].append(ended.error or f"exit code {ended.code}")
            if not run.checkpoints():
                break
            shutil.rmtree(run.output / f"checkpoint-{run.checkpoints()[-1]}")
    case["resumed at"] = case["resumed at"][1:]
    return case | {"finished": ended.code == 0, "without help": ended.code == 0 and not case["errors"]}


# ------------------------------------------------------------------------------------------------------------ SIGTERM


def sigterm(folder: Path, args: argparse.Namespace) -> Case:
    moments = random.Random(args.seed)
    delays = [moments.uniform(0, 2.5) for _ in range(args.sigterms)]  # just-in-time saving waits for 3 s
    result: Case = {}
    for name, updates, jit in (
        ("default", 1, False),
        ("enable_jit_checkpoint", 1, True),
        ("enable_jit_checkpoint, num_iterations=2", 2, True),
    ):
        undisturbed = undisturbed_run(folder / "undisturbed-0", updates=updates)
        cases = []
        for delay in delays:
            run = Run(folder / "terminated", updates=updates, settings={"enable_jit_checkpoint": True} if jit else {})
            run.start()
            run.wait_for_training()
            time.sleep(delay)
            began = time.monotonic()
            run.kill(15)
            ended = run.wait()
            newest = max(run.checkpoints(), default=0)
            case = {
                "delay": round(delay, 2),
                "exit code": ended.code,
                "seconds until it ended": round(time.monotonic() - began, 2),
                "steps done": ended.steps,
                "newest checkpoint": newest,
                "steps lost": ended.steps - newest,
            }
            run.start()
            again = run.wait()
            case |= {"finished": again.code == 0, "error": again.error} | equal(undisturbed, run, JOB["steps"])
            say(f"SIGTERM, {name}: {case}")
            cases.append(case)
            shutil.rmtree(run.folder)
        result[name] = {"cases": cases}
    return result


# --------------------------------------------------------------------------------------------------------- corruption


def damage(file: Path, how: str, where: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "flip one bit":
        data[where.randrange(len(data) // 4, len(data))] ^= 1 << where.randrange(8)
    file.write_bytes({"empty": b"", "truncate": data[: len(data) // 2]}.get(how, data))


def corruption(folder: Path, args: argparse.Namespace) -> Case:
    """Each file of the newest checkpoint x each damage; what resumes silently is compared with the undisturbed run."""
    undisturbed = undisturbed_run(folder / "undisturbed-0")
    newest, older = JOB["steps"] - 4, JOB["steps"] - 8
    where = random.Random(args.seed)
    cases = []
    files = sorted(p.name for p in (undisturbed.output / f"checkpoint-{newest}").iterdir())
    for name in ["", *files]:
        for how in ("truncate", "flip one bit", "delete", "empty") if name else ("nothing",):
            run = Run(folder / "damaged")
            for step in (older, newest):
                shutil.copytree(undisturbed.output / f"checkpoint-{step}", run.output / f"checkpoint-{step}")
            if name:
                damage(run.output / f"checkpoint-{newest}" / name, how, where)
            run.start()
            ended = run.wait(args.patience)
            same = equal(undisturbed, run, JOB["steps"])
            case = {"file": name, "damage": how, "steps": ended.steps, "error": ended.error, **same}
            if ended.code is None:
                case["outcome"] = "hung"
            elif ended.code:
                case["outcome"] = "traceback that names the file" if name in ended.error else "traceback"
            elif ended.steps > JOB["steps"] - newest:
                case["outcome"] = "fell back"
            elif all(same.values()):
                case["outcome"] = "loaded, without effect"
            else:
                case["outcome"] = "loaded silently, another result"
            say(f"{case}")
            cases.append(case)
            shutil.rmtree(run.folder)
    return {"cases": cases}


# ------------------------------------------------------------------------------------------------------------ hostile


def hostile(folder: Path, args: argparse.Namespace) -> Case:
    """Four steps beside two sound rewards, hostile from the second step on; capped at 10 GB of address space."""
    import trl_rewards

    cases = []
    usual: Case = {}
    for name in trl_rewards.HOSTILE:
        run = Run(folder / name, steps=4, save_steps=4, hostile=name, address_space=10 * 10**9)
        run.start()
        ended = run.wait(args.patience)
        state = run.result()
        usual = usual or state
        case = {
            "function": name,
            "exit code": ended.code,
            "steps": state.get("step", ended.steps),
            "error": ended.error,
            "processes left over": ended.left_over,
            "bytes printed": (run.folder / "stdout").stat().st_size,
            "checkpoint in its folder": 4 in run.checkpoints(),
            "weights finite": state.get("finite"),
            "weights as with a harmless reward": same_values(state.get("weights"), usual["weights"]),
        }
        if ended.code is None:
            case["outcome"] = "hung"
        elif ended.code:
            case["outcome"] = "crashed"
        elif state.get("step") != 4:
            case["outcome"] = "ended early with exit code 0"
        elif not case["weights finite"]:
            case["outcome"] = "finished with weights that are not finite"
        elif not case["weights as with a harmless reward"]:
            case["outcome"] = "finished, another result"
        else:
            case["outcome"] = "finished"
        say(f"{case}")
        cases.append(case)
        shutil.rmtree(run.folder)
    return {"cases": cases}


# -------------------------------------------------------------------------------------------------------------- table


def lines(results: Case) -> list[list[str]]:
    """One for each battery and variant."""
    rows = []
    for name, part in results.get("kills", {}).items():
        cases = part["cases"]
        same = [all(c[key] for key in ("weights", "optimizer", "metrics")) for c in cases]
        unaided = [c["without help"] for c in cases]
        figure = f"{sum(map(all, zip(same, unaided, strict=True)))}/{len(cases)} finished unaided and equal"
        repeats = "repeats itself" if all(part["undisturbed runs equal"].values()) else "does not repeat itself"
        what = f"{unaided.count(False)} could not be resumed until the newest checkpoint was deleted by hand"
        unequal = ", ".join(str(c["resumed at"]) for c, equal in zip(cases, same, strict=True) if not equal)
        what += f"; unequal after resuming at {unequal}" if unequal else "; all equal in the end"
        rows.append([f"kill -9, {name}", figure, f"undisturbed it {repeats}; {what}"])
    for name, part in results.get("sigterm", {}).items():
        cases = part["cases"]
        codes = sorted({str(c["exit code"]) for c in cases})
        what = f"exit code {', '.join(codes)}; steps lost {', '.join(str(c['steps lost']) for c in cases)}"
        figure = f"{sum(c['finished'] and c['weights'] for c in cases)}/{len(cases)} resumed and equal"
        rows.append(
            [f"SIGTERM, {name}", figure, f"{what}; {max(c['seconds until it ended'] for c in cases)} s at most"]
        )
    for battery in ("corruption", "hostile"):
        cases = [
            c
            for c in results.get(battery, {}).get("cases", [])
            if c.get("file") != "" and c.get("function") != "harmless"
        ]
        for outcome in sorted({c["outcome"] for c in cases}):
            those = [c for c in cases if c["outcome"] == outcome]
            names = ", ".join(sorted({c.get("file", c.get("function", "")) for c in those}))
            rows.append([f"{battery}: {outcome}", f"{len(those)}/{len(cases)}", names])
    return rows


def main() -> None:
    batteries = {act.__name__: act for act in (kills, sigterm, corruption, hostile)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batteries", nargs="+", choices=batteries, default=list(batteries))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--sigterms", type=int, default=5)
    parser.add_argument("--patience", type=float, default=90, help="seconds after which a run counts as hung")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the bits")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    result: Case = json.loads(args.out.read_text()) if args.out and args.out.exists() else {"results": {}}
    packages = ("trl", "transformers", "torch", "accelerate", "datasets", "safetensors", "numpy")
    result["versions"] = {name: metadata.version(name) for name in packages}
    result["settings"] = {key: value for key, value in JOB.items() if key not in ("model", "output")}
    with tempfile.TemporaryDirectory(prefix="trl-battery-") as folder:
        for name in args.batteries:
            options = {key: getattr(args, key) for key in ("kills", "sigterms", "patience", "seed")}
            result["results"][name] = batteries[name](Path(folder), args)
            result.setdefault("options", {})[name] = options
            if args.out:
                args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(["battery", "TRL", "what happened"], lines(result["results"])))


if __name__ == "__main__":
    main()
