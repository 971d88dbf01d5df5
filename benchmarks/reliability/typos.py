"""What a user reads after a mistake: the same mistakes in SlimRL's settings and in TRL's.

    python benchmarks/reliability/typos.py --python trl=peers/trl/bin/python [--out FILE]

TRL is asked as its documentation says, `trl grpo --config FILE.yaml`; ours is `slimrl train FILE.yaml`. Every mistake is a
change of settings that both train one step with. A mistake is refused or accepted; refused well is in words that name what
is wrong, without a traceback. A file that exists keeps the mistakes that were not asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import say, table

ROOT = Path(__file__).parent.parent.parent

Settings = dict[str, Any]
TRL: Settings = {
    "model_name_or_path": str(ROOT / "slimrl" / "builtin"),
    "datasets": [{"path": "json", "data_files": "data.jsonl"}],
    "reward_funcs": ["rewards.length"],
    "output_dir": "out",
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
}
OURS: Settings = {
    "steps": 1,
    "output": "out",
    "task": {"name": "jsonl", "path": "data.jsonl"},
    "rollout": {"problems": 1, "group_size": 4, "max_new_tokens": 8},
    "evaluation": {"problems": 1},
}
FILES = {
    "data.jsonl": "".join(
        f'{{"prompt": "{i} + 1?", "question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(40)
    ),
    "bad.jsonl": '{"prompt": "1 + 1?", "question": "1 + 1?", "answer": "2"}\n{"prompt": "2 + 1?", "answer\n',
    "columns.jsonl": '{"text": "1 + 1?", "label": "2"}\n' * 40,
    "empty.jsonl": "",
    "rewards.py": "def length(completions, **_):\n    return [float(len(str(c))) for c in completions]\n",
}
REWARD = {"low": 0.0, "high": 100.0}
RESUME = "--resume"
"""A flag of `slimrl train`, not a setting."""
# mistake: (what a message must name, TRL's settings, ours); None: there is nothing like it
MISTAKES: dict[str, tuple[str, Settings | None, Settings | None]] = {
    "no mistake": ("", {}, {}),
    "learning rate misspelt": ("learnin_rate", {"learnin_rate": 0.1}, {"optimizer": {"learnin_rate": 0.1}}),
    "unknown section": ("algo", {"algo": {"beta": 0.1}}, {"algo": {"kl_coef": 0.1}}),
    "a word for a number": (
        "learning_rate|fast",
        {"learning_rate": "fast"},
        {"optimizer": {"learning_rate": "fast"}},
    ),
    "4.5 completions a group": (
        "num_generations|group_size|4.5",
        {"num_generations": 4.5},
        {"rollout": {"group_size": 4.5}},
    ),
    "batch that does not divide": (
        "num_generations|minibatches",
        {"num_generations": 3},
        {"optimizer": {"minibatches": 3}},
    ),
    "negative learning rate": ("learning.rate", {"learning_rate": -0.1}, {"optimizer": {"learning_rate": -0.1}}),
    "KL coefficient -1": ("beta|kl_coef", {"beta": -1.0}, {"algorithm": {"kl_coef": -1.0}}),
    "temperature 0": ("temperature", {"temperature": 0.0}, {"rollout": {"temperature": 0.0}}),
    "top_p 1.5": ("top_p", {"top_p": 1.5}, {"rollout": {"top_p": 1.5}}),
    "model folder missing": ("no/model", {"model_name_or_path": "./no/model"}, {"model": {"path": "./no/model"}}),
    "model folder empty": ("hollow", {"model_name_or_path": "./hollow"}, {"model": {"path": "./hollow"}}),
    "data file missing": (
        "no.jsonl",
        {"datasets": [{"path": "json", "data_files": "no.jsonl"}]},
        {"task": {"path": "no.jsonl"}},
    ),
    "data file empty": (
        "empty.jsonl",
        {"datasets": [{"path": "json", "data_files": "empty.jsonl"}]},
        {"task": {"path": "empty.jsonl"}},
    ),
    "broken line 2 in the data": (
        r"bad.jsonl:2|line 2|row 1",
        {"datasets": [{"path": "json", "data_files": "bad.jsonl"}]},
        {"task": {"path": "bad.jsonl"}},
    ),
    "data without the column": (
        "prompt|question",
        {"datasets": [{"path": "json", "data_files": "columns.jsonl"}]},
        {"task": {"path": "columns.jsonl"}},
    ),
    "no reward at all": ("reward", {"reward_funcs": []}, {"rewards": {"correct": 0.0}}),
    "reward misspelt": ("acuracy_reward|corect", {"reward_funcs": ["acuracy_reward"]}, {"rewards": {"corect": 1.0}}),
    "own reward misspelt": (
        "lenght",
        {"reward_funcs": ["rewards.lenght"]},
        {"rewards": {"custom": {"rewards.py:lenght": REWARD}}},
    ),
    "loss misspelt": ("loss.type|aggregation", {"loss_type": "drgrpo"}, {"algorithm": {"aggregation": "token_maen"}}),
    "scale_rewards misspelt": (
        "scale_rewards",
        {"scale_rewards": "groups"},
        {"algorithm": {"scale_rewards": "groups"}},
    ),
    "schedule misspelt": (
        "[Ss]chedule",
        {"lr_scheduler_type": "cosin"},
        {"optimizer": {"schedule": "cosin"}},
    ),
    "lower clip 2": ("epsilon|clip_low", {"epsilon": 2.0}, {"algorithm": {"clip_low": 2.0}}),
    "no new tokens": ("max_completion_length|max_new_tokens", {"max_completion_length": 0}, {"rollout": {"max_new_tokens": 0}}),
    "groups of one": ("generations|group_size", {"num_generations": 1}, {"rollout": {"group_size": 1}}),
    "-5 steps": ("steps", {"max_steps": -5}, {"steps": -5}),
    "output folder is a file": ("rewards.py", {"output_dir": "rewards.py"}, {"output": "rewards.py"}),
    "output folder not writable": ("/proc/none", {"output_dir": "/proc/none"}, {"output": "/proc/none"}),
    "resume where no checkpoint is": ("hollow", {"resume_from_checkpoint": "hollow"}, {RESUME: "hollow"}),
}  # fmt: skip


def merged(base: Settings, change: Settings) -> Settings:
    """Sections one level deep."""
    both = {key: {**base[key], **change[key]} for key in base.keys() & change.keys() if isinstance(base[key], dict)}
    return base | change | both


def ask(command: list[str], settings: Settings, names: str, patience: float) -> dict[str, Any]:
    """Run one command with the settings in a YAML file, in a fresh folder."""
    with tempfile.TemporaryDirectory(prefix="typos-") as name:
        folder = Path(name)
        (folder / "hollow").mkdir()
        for file, text in FILES.items():
            (folder / file).write_text(text)
        (folder / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        quiet["HF_DATASETS_CACHE"] = str(folder / "cache")
        try:
            done = subprocess.run(
                [*command, "settings.yaml"], cwd=folder, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=patience,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"outcome": "hung"}
        text = done.stderr.replace(str(ROOT), "REPOSITORY").replace(name, "FOLDER")
    traceback = "Traceback (most recent call last)" in text
    message = explanation(text)
    if not done.returncode:
        outcome = "accepted with a warning" if re.search(names, warnings(text)) and names else "accepted"
    elif not traceback:
        outcome = "refused in words" if re.search(names, message) else "refused, cause not named"
    else:
        outcome = "traceback that names it" if re.search(names, message) else "traceback"
    return {
        "outcome": outcome,
        "exit code": done.returncode,
        "lines on stderr": len(text.splitlines()),
        "message": message[:300] if done.returncode else "",
    }


def explanation(text: str) -> str:
    """The messages of all tracebacks (but the launcher's own), last first, or what is no warning where there is none."""
    first, *parts = text.split("Traceback (most recent call last):")
    parts = [part for part in parts if "CalledProcessError" not in part]
    kept = parts[::-1] or [first]
    lines = [line for part in kept for line in part.splitlines() if line.strip() and not line.startswith(" ")]
    return " ".join(lines) if parts else " ".join(line for line in lines if "Warning" not in line)[-300:]


def warnings(text: str) -> str:
    """The lines of a text that warn."""
    return "\n".join(line for line in text.splitlines() if re.search("warning|no effect", line, re.IGNORECASE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of ours or trl")
    parser.add_argument("--engines", nargs="+", choices=("ours", "trl"), default=["ours", "trl"])
    parser.add_argument("--mistakes", nargs="+", choices=MISTAKES, default=list(MISTAKES))
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a command counts as hung")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    pythons = {"ours": sys.executable, "trl": sys.executable} | dict(entry.split("=", 1) for entry in args.python)
    commands = {
        "ours": [pythons["ours"], "-m", "slimrl", "train"],
        "trl": [pythons["trl"], str(Path(pythons["trl"]).parent / "trl"), "grpo", "--config"],
    }
    found: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for mistake in args.mistakes:
        names, *changes = MISTAKES[mistake]
        for engine, base, change in zip(("trl", "ours"), (TRL, OURS), changes, strict=True):
            if engine in args.engines and change is not None:
                change = dict(change)
                resume = ["--resume", str(change.pop(RESUME))] if RESUME in change else []
                answer = ask([*commands[engine], *resume], merged(base, change), names, args.patience)
                found.setdefault(mistake, {})[engine] = answer
                say(f"{mistake}, {engine}: {answer}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [[m, *(cell(found.get(m, {}).get(e)) for e in ("ours", "trl"))] for m in args.mistakes]
    print(table(["mistake", "SlimRL", "TRL"], rows))


def cell(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "no such setting"
    return (
        f"{answer['outcome']} ({answer['lines on stderr']} lines)" if "lines on stderr" in answer else answer["outcome"]
    )


if __name__ == "__main__":
    main()
