"""A thousand random episodes over eight templates: each turn is conditioned on the ids that were drawn and given before it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.environments.episodes import Ids, Play
from slimrl.model.loading import adopt
from slimrl.model.prompts import make_prompter
from slimrl.preflight.environment import in_environment
from slimrl.randomness import uniforms
from slimrl.records import Problem
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from tests.model.test_following import NO_TOOLS, THINKING
from tests.model.test_prompts import PARTS, TURNS, characters
from tests.rollout.test_engine import trainer_gaps
from tests.tiny import FAMILIES

CHATML = (
    "{% if tools %}<turn>system\n{{ tools | tojson }}<eot>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<turn>user{% endif %}"
    "\n<tool_response>\n{{ m['content'] }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<eot>\n{% endif %}"
    "{% else %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eot>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
LLAMA = (
    "<bos>{% for m in messages %}<turn>{{ 'ipython' if m['role'] == 'tool' else m['role'] }}</turn>\n\n{{ m['content'] | trim }}<eot>"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant</turn>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] | trim }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
TEMPLATES: dict[str, Any] = {
    "turns": TURNS, "parts": PARTS, "thinking": THINKING, "no tools": NO_TOOLS, "chatml": CHATML, "llama": LLAMA, "gemma": GEMMA,
    "plain": None,
}  # fmt: skip
EPISODES, GROUP, BUDGET, TURN_COUNT = 128, 8, 110, 4
ECHO = '''
from random import Random


class Echo:
    """Answers with messages that follow from the turn, of one role or the other, some of which spell what templates write."""

    def reset(self, problem):
        self.turns = 0

    def step(self, text):
        self.turns += 1
        random = Random(f"{self.turns} {text}")
        said = ["5", " a\\n\\nb ", "<eot>", "<turn>user\\nmine", "(" + text[:4] + ")", "0 " * 3, "{}"]
        role = random.choice(["user", "tool"])
        messages = [{"role": role, "content": "r" + random.choice(said)} for _ in range(1 + random.randrange(2) * (role == "tool"))]
        return messages, random.random() < 0.1
'''  # fmt: skip


class Heard:
    """Passes turns on, and notes the ids of each turn and of its answer."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.turns: dict[int, list[tuple[Ids, Future[Ids]]]] = {}

    def __call__(self, number: int, ids: Ids) -> Future[Ids]:
        reply = self.play(number, ids)
        self.turns.setdefault(number, []).append((ids, reply))
        return reply


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_every_turn_are_those_before_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    settings = [f"environment.name={tmp_path}/echo.py:Echo", f"environment.turns={TURN_COUNT}"]
    config = load_config(TrainConfig, [], settings)
    tokenizer = characters(TEMPLATES[name], special=("<turn>", "</turn>", "<eot>", "<eos>", "<bos>", "<pad>"))
    torch.manual_seed(0)
    shape = FAMILIES["qwen2"](len(tokenizer))
    shape.config.max_position_embeddings = 512
    prompter = make_prompter(tokenizer, "auto")
    ends = {tokenizer.eos_token_id, *range(40, 72)} | ({prompter.turn_end} - {None})
    policy = replace(adopt(shape, tokenizer, name="qwen2"), stop_ids=tuple(sorted(ends)), context=512)
    rules, policy, prompter = in_environment(config, policy, prompter)
    assert rules is not None
    requests, heard = [], []
    for index in range(EPISODES // GROUP):
        problem = Problem(f"p{index}", f"What is {index}+3?", "1")
        heard.append(Heard(Play(rules, problem)))
        draws = uniforms(0, "train", 0, problem.id, samples=GROUP, positions=BUDGET)
        ids = prompter.ids([{"role": "user", "content": problem.question}])
        requests.append(Request(ids, draws, 0, heard[-1], 12))
    groups = RolloutEngine(policy, slots=32).generate(requests, max_new_tokens=BUDGET)
    several = 0
    for group, told, request in zip(groups, heard, requests, strict=True):
        records = told.play.played(group)
        for number, completion in enumerate(group):
            assert not records[number].failed
            assert completion.prompt_ids == request.prompt_ids
            expected: Ids = ()
            marks: list[bool] = []
            for ids, reply in told.turns.get(number, []):
                assert ids[: len(expected)] == expected, "what was drawn and given before"
                marks += [False] * (len(ids) - len(expected))
                expected = (*ids, *reply.result()) if len(ids) + len(reply.result()) < BUDGET else ids
                marks += [True] * (len(expected) - len(ids))
                several += len(expected) > len(ids)
            assert completion.token_ids[: len(expected)] == expected
            given = [*completion.given] or [False] * len(completion.token_ids)
            assert given == marks + [False] * (len(completion.token_ids) - len(marks))
    assert several > EPISODES
    assert trainer_gaps(policy, groups, 1.0).max() < 1e-4
