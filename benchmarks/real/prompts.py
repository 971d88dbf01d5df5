"""The training problems of a run of `slimrl train`, step by step, as JSON lines of prompt and answer for another trainer.

python prompts.py prompts.jsonl FILE.yaml ... section.key=value ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.preflight.setup import prepare


def main() -> None:
    target, *rest = sys.argv[1:]
    config = load_config(TrainConfig, [a for a in rest if "=" not in a], [a for a in rest if "=" in a])
    setup = prepare(config)
    with Path(target).open("w") as file:
        for step in range(config.steps):
            problems = setup.training_problems(step=step, count=config.rollout.problems)
            for _, problem in zip(range(config.rollout.problems), problems, strict=False):
                prompt = setup.prompter.text(setup.task.messages(problem))
                file.write(json.dumps({"prompt": prompt, "answer": problem.answer}) + "\n")


if __name__ == "__main__":
    main()
