"""Warm starts in an environment: episodes of several turns as data, written and read as those that are played."""

from __future__ import annotations

import json
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.preflight.environment import episode_ids, played
from slimrl.preflight.setup import Setup, prepare
from slimrl.sft import behind_stops, demonstrator, sft
from tests.cli.conftest import slimrl as slimrl
from tests.conftest import ROOT

SMALL = (
    "model.path=builtin-tools", "rollout.max_new_tokens=160", "evaluation.problems=3", "evaluation.greedy=false", "steps=2",
    "sft.batch_size=4", "name=s",
)  # fmt: skip


def said(*turns: str) -> list[dict[str, str]]:
    """Messages from `role: text`."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def conversation(a: int, b: int) -> list[dict[str, str]]:
    call, text = f"<calculate>{a}+{b}</calculate>", f"{a}+{b}={a + b}\n#### {a + b}"
    return said(f"user: {a} and {b}?", f"assistant: {call}", f"tool: {a + b}", f"assistant: {text}")


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"task.path={file}"


def config_of(output: Path, *more: str) -> SftRunConfig:
    return load_config(SftRunConfig, [], [*SMALL, f"output={output}", "environment.name=calculator", *more])


@pytest.mark.parametrize("recipe", ["calculator", "guess"])
def test_a_demonstration_has_the_ids_of_the_episode_that_it_shows(recipe: str) -> None:
    config = load_config(TrainConfig, [str(ROOT / "recipes" / f"{recipe}.yaml")], ["evaluation.problems=1"])
    setup = prepare(config)
    problems = list(islice(setup.training_problems(step=0, count=6), 6))
    requests = setup.requests(problems, stream="train", step=0, samples=4)
    (stop,) = {*setup.policy.stop_ids} & {setup.prompter.turn_end}
    compared = 0
    for request, drawn in zip(
        requests, setup.engine.generate(requests, max_new_tokens=config.rollout.max_new_tokens), strict=True
    ):
        for completion, episode in zip(drawn, played(request, drawn), strict=True):
            if completion.finish == "stop" and completion.turns > 1:
                assert setup.rules is not None
                ids = episode_ids(
                    setup.rules, lambda *turn: (*setup.completion_ids([turn[0]], turn[1])[0], stop), episode.turns
                )
                assert ids == (completion.token_ids, completion.given)
                compared += 1
    assert compared > 4


def examples(setup: Setup[SftRunConfig], config: SftRunConfig) -> list[tuple[Any, Any]]:
    demonstrate = demonstrator(setup, config)
    return [(problem, demonstrate(problem, 0)) for problem in setup.task.train]


def test_a_warm_start_learns_the_turns_and_is_measured_in_the_environment(tmp_path: Path) -> None:
    rows = [{"messages": conversation(100 + i, 200 + 3 * i)} for i in range(30)]
    config = config_of(tmp_path, write(tmp_path / "rows.jsonl", rows), "sft.show_every=1")
    setup = prepare(config)
    for problem, example in examples(setup, config):
        texts = [text for role, text in problem.episode if role == "assistant"]
        request, *_ = setup.requests([problem], stream="train", step=0, samples=1)
        assert example.prompt_ids == request.prompt_ids
        learned = [i for i, given in zip(example.target_ids, example.given, strict=True) if not given]
        assert learned == [i for text in texts for i in (*setup.completion_ids([text])[0], setup.prompter.turn_end)]
        answered = [i for i, given in zip(example.target_ids, example.given, strict=True) if given]
        assert problem.episode[1][1] in setup.policy.decode(answered)
        assert example.imitated == len(learned) < len(example.target_ids)
    summary = sft(config, Display(quiet=True))
    losses = [json.loads(line) for line in (Path(summary.run) / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["num_tokens"] == summary.tokens_trained
    for step in (0, 2):
        evaluated = (Path(summary.run) / "evals" / f"step-{step:08d}.jsonl").read_text().splitlines()
        assert max(json.loads(line)["turns"] for line in evaluated) > 0


def test_turns_end_at_a_text_of_rollout_stop_as_those_that_are_played(tmp_path: Path) -> None:
    """The environment then writes the token that ends the turn; a turn that would lose its call is refused."""
    rows = [
        {"messages": said(f"user: {i} and 4?", f"assistant: <calculate>{i}+4</calculate>\n", f"tool: {i + 4}", f"assistant: #### {i + 4}")}
        for i in range(8)
    ]  # fmt: skip
    more = (write(tmp_path / "rows.jsonl", rows), "task.style=hashes")
    config = config_of(tmp_path, *more, 'rollout.stop=["\\n"]')
    setup = prepare(config)
    assert behind_stops(setup, config).note == ""
    for _, example in examples(setup, config):
        first = example.given.index(True)
        assert setup.policy.tokenizer.decode(example.target_ids[:first]).endswith("</calculate>\n")
        assert example.target_ids[first] == setup.prompter.turn_end
        assert example.target_ids[-1] == setup.prompter.turn_end
    config = config_of(tmp_path, *more, 'rollout.stop=["</calculate>"]')
    with pytest.raises(
        SettingsError, match=r"behind '</calculate>'\), and would be taught without the rest of a turn; take"
    ):
        behind_stops(prepare(config), config)


def test_a_turn_that_ends_with_a_special_token_of_rollout_stop_is_ended_for_the_next_one(tmp_path: Path) -> None:
    """As one that ends with a text is; the tokens that end a turn by themselves need nothing behind."""
    setup = prepare(config_of(tmp_path, 'rollout.stop=["<|user|>"]'))
    assert setup.rules is not None
    user, *_ = setup.policy.tokenizer.convert_tokens_to_ids(["<|user|>"])
    assert user in setup.policy.stop_ids
    heard = [{"role": "user", "content": "7"}]
    behind = {last: setup.rules.encode(heard, last) for last in (user, setup.prompter.turn_end)}
    assert behind[user] == (setup.prompter.turn_end, *behind[setup.prompter.turn_end])


def test_an_answer_column_completes_a_last_turn_without_the_form(tmp_path: Path) -> None:
    """As it does for solutions of one turn; a last turn that has the form stays as it is."""
    bare = said("user: 3 and 4?", "assistant: <calculate>3+4</calculate>", "tool: 7", "assistant: It is 7.")
    formed = said("user: 5 and 6?", "assistant: <calculate>5+6</calculate>", "tool: 11", "assistant: So #### 11")
    rows = [{"messages": bare, "answer": "7"}, {"messages": formed, "answer": "11"}]
    test = write(tmp_path / "test.jsonl", [{"messages": said("user: 1 and 1?"), "answer": "2"}]).partition("=")[2]
    config = config_of(tmp_path, write(tmp_path / "rows.jsonl", rows), f"task.test_path={test}", "sft.batch_size=2")
    setup = prepare(config)
    ends = [setup.policy.decode(example.target_ids).split("user")[-1] for _, example in examples(setup, config)]
    assert ends[0].endswith("It is 7.\n#### 7")
    assert ends[1].endswith("So #### 11")
    assert ends[1].count("####") == 1


def test_a_column_of_solutions_does_not_take_the_place_of_a_last_turn(tmp_path: Path) -> None:
    bare = said("user: 3 and 4?", "assistant: <calculate>3+4</calculate>", "tool: 7", "assistant: It is 7.")
    other = said("user: 5 and 4?", "assistant: <calculate>5+4</calculate>", "tool: 9", "assistant: It is 9.")
    rows = [{"messages": one, "answer": one[2]["content"], "solution": "Count on fingers."} for one in (bare, other)]
    config = config_of(tmp_path, write(tmp_path / "rows.jsonl", rows), "sft.batch_size=1")
    setup = prepare(config)
    ((_, example),) = examples(setup, config)
    text = setup.policy.decode(example.target_ids)
    assert "It is" in text
    assert "fingers" not in text


def test_columns_that_hold_an_episode(tmp_path: Path) -> None:
    """As messages, as TRL's conversational completion, and as a solution beside question and answer; others stay as they are."""
    whole = conversation(30, 4)
    prompt, episode = whole[:1], whole[1:]
    forms: list[dict[str, Any]] = [
        {"messages": whole},
        {"prompt": prompt, "completion": episode},
        {"question": "30 and 4?", "answer": "34", "solution": episode},
        {"question": "30 and 4?", "answer": "34", "solution": whole},
    ]
    for number, form in enumerate(forms):
        other = json.loads(json.dumps(form).replace("30 and", "31 and"))
        file = write(tmp_path / f"{number}.jsonl", [form, other])
        config = config_of(tmp_path, file, "sft.batch_size=1")
        (problem,) = prepare(config).task.train
        assert problem.episode == tuple((turn["role"], turn["content"]) for turn in episode)
        assert (problem.question[2:], problem.answer, problem.turns) == (" and 4?", "34", ())


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (said("user: a", "tool: b", "assistant: c"), "has a message of a tool in the prompt, before a turn"),
        (said("user: a", "assistant: b", "tool: c"), "ends with a message of a tool; add the assistant's turn behind it"),
        (said("user: a", "assistant: b", "assistant: c"), "has two turns of the assistant's in a row; join them"),
        (
            [*said("user: a"), {"role": "assistant", "content": None, "tool_calls": [{}]}, *said("tool: b", "assistant: c")],
            r"has calls apart from its text \(tool_calls\); write them into the content",
        ),
        (
            [*said("user: a"), {"role": "assistant", "content": "I look.", "tool_calls": [{}]}, *said("tool: b", "assistant: c")],
            r"has calls apart from its text \(tool_calls\)",
        ),
        (
            [*said("user: a"), {"role": "assistant", "tool_calls": [{}]}, *said("tool: b", "assistant: c")],
            r"has calls apart from its text \(tool_calls\)",
        ),
    ],
)  # fmt: skip
def test_episodes_that_are_none(messages: list[Any], sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"messages": messages}, {"messages": conversation(1, 2)}])
    with pytest.raises(DataError, match=rf"rows.jsonl:1: field 'messages[.0-9]*' {sentence}"):
        prepare(config_of(tmp_path, file))


def test_without_an_environment_nobody_answers(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"messages": conversation(1, 2)}, {"messages": conversation(2, 2)}])
    with pytest.raises(DataError, match=r"has the role 'tool'; the roles are .* and with environment.name tool"):
        prepare(load_config(EvalConfig, [], ["model.path=builtin-tools", file]))


def test_the_page_trains(slimrl: Any) -> None:
    text = (ROOT / "docs" / "environments.md").read_text().partition("## Demonstrations")[2]
    row, commands = re.findall(r"^```(?:json)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[:2]
    rows = [row.replace("23", str(number)).replace("322", str(14 * number)) for number in range(20, 44)]
    Path("shown.jsonl").write_text("".join(rows))
    small = ["steps=1", "rollout.max_new_tokens=100", "evaluation.problems=1", "evaluation.greedy=false"]
    for command in commands.splitlines():
        more = ["model.path=builtin-tools"] if "Qwen" in command else ["rollout.problems=2", "rollout.group_size=2"]
        result = slimrl(*shlex.split(command)[1:], *small, *more)
        assert result.code == 0, result.err


def test_tasks_without_demonstrations(tmp_path: Path) -> None:
    config = config_of(tmp_path, "task.name=guess", "environment.name=guess")
    with pytest.raises(SettingsError, match=r"task guess has no worked solutions to imitate; choose another task"):
        demonstrator(prepare(config), config)
