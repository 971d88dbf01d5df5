"""The files with which `slimrl new` begins a project."""

import json
import re

from slimrl.errors import SettingsError

SETTINGS = """\
# Train with: slimrl train NAME.yaml. Paths are relative to this file. `slimrl settings WORD` explains every setting, and
# `slimrl doctor NAME.yaml` shows the first prompt, a few completions and the rewards before anything is trained.
model:
  path: builtin  # the tiny model that comes with SlimRL; yours is a folder, or a name on the Hub as Qwen/Qwen2.5-0.5B-Instruct
  # lora: {rank: 16}  # train an adapter in place of the weights

task:
  path: NAME.jsonl  # a question and its right answer in each row; one row of ten is held out to measure by
  # test_path: NAME-test.jsonl  # held-out rows of your own
  style: hashes  # the form of an answer, which the model is asked for: hashes is "#### 42", boxed is "\\boxed{42}"
  checker: numeric  # what counts as equal: numeric, symbolic (LaTeX), exact (text), choice, regex

rewards:
  correct: 1.0  # weight of a right answer, which pays 1
  custom:
    rewards.py:brief: {weight: 0.1, low: 0, high: 1}  # your own function, and the least and the most that it returns

rollout:
  problems: 4  # of a step; more rows deserve more, such as 32
  group_size: 8  # completions of each problem, which are compared with each other
  # max_new_tokens: 512  # longer completions are cut off; auto chooses by the model

# optimizer: {learning_rate: 1.0e-6}  # auto chooses by the size of the model
steps: 20
evaluation:
  samples: 16  # completions of each held-out problem
"""

REWARDS = '''\
"""Rewards of NAME; NAME.yaml names them under rewards.custom."""


def brief(completions, **columns):
    """1 for a completion of up to 80 characters, falling to 0 at 240.

    `completions` are texts. `columns` has a list for each column of the data (`question`, `answer` and all others), in the same
    order. Return a number for each completion, or None where there is nothing to say.
    """
    return [min(1.0, max(0.0, (240 - len(text)) / 160)) for text in completions]
'''

ROWS = (
    ("Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?", "7"),
    ("Anna has 12 pens. Then Anna gives 5 away. How many pens does Anna have now?", "7"),
    ("Ben has 6 books. Then Ben buys 8 more. Then Ben gives 3 away. How many books does Ben have now?", "11"),
    ("Eva has 9 shells. Then Eva finds 7 more. How many shells does Eva have now?", "16"),
    ("Max has 15 coins. Then Max gives 6 away. Then Max gets 2 more. How many coins does Max have now?", "11"),
)


def files_of(name: str) -> dict[str, str]:
    """The texts of a project's files by their names; raises SettingsError for a name that no file should have."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name == "rewards":
        raise SettingsError(
            f"{name[:80]!r} cannot name a project: up to 64 letters, digits, '.', '_' and '-', beginning with a letter or a digit"
        )
    rows = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in ROWS]
    return {
        f"{name}.yaml": SETTINGS.replace("NAME", name),
        "rewards.py": REWARDS.replace("NAME", name),
        f"{name}.jsonl": "".join(rows),
    }
