"""Thinking that the prompt begins, from the template to the verdict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.environments.episodes import Play
from slimrl.evaluate import evaluate
from slimrl.preflight.setup import Setup, prepare, prepare_training
from slimrl.preflight.thinking import thinking_metrics, thinking_tokens
from slimrl.records import Completion, Rollout, ToolCall
from slimrl.results import GradedCompletion, SplitEvaluation
from slimrl.rewards.gold import check_gold
from slimrl.sft import demonstrator
from slimrl.thinking import closed, committed, is_open, opening
from tests.tiny import NoTokenizer, tiny_policy

SMALL = ("evaluation.problems=4", "evaluation.harder_problems=0", "rollout.max_new_tokens=40", "model.device=cpu")


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|user|>hi<|assistant|><think>\n", "<think>\n"),
        ("hi<|assistant|><think>", "<think>"),
        ("[INST] hi [/INST][THINK]", "[THINK]"),
        ("hi<|begin_of_thought|>\n\n", "<|begin_of_thought|>\n\n"),
        ("hi\u25c1think\u25b7", "\u25c1think\u25b7"),
        ("hi<|channel>\n", "<|channel>\n"),
        ("hi<|assistant|><think>\n\n</think>\n\n", ""),  # Qwen3 without thinking
        ("hi<|turn>model\n<|channel>thought\n<channel|>", ""),  # Gemma 4 without thinking
        ("Explain what <think> means.<|assistant|>", ""),
        ("<|assistant|>", ""),
        ("", ""),
    ],
)
def test_a_prompt_may_begin_the_thinking(prompt: str, mark: str) -> None:
    assert opening(prompt) == mark
    done = closed(mark, "2+2=4\n#### 4")
    assert committed(mark + done).strip() == "2+2=4\n#### 4"
    assert (done == "2+2=4\n#### 4") is not bool(mark)
    assert closed(mark, "so</think>4") == "so</think>4"


@pytest.mark.parametrize(
    ("begun", "text", "rest"),
    [
        ("<think>\n", "<think>\nso</think>\n4", "so</think>\n4"),
        ("<think>\n", "\n<think>so</think>4", "so</think>4"),
        ("<think>", "<think>\nso</think>4", "\nso</think>4"),
        ("<think>\n", "<think>\n\n</think>\n\n4", "</think>\n\n4"),
        ("[THINK]", "[THINK]so[/THINK]4", "so[/THINK]4"),
        ("<|channel>\n", "<|channel>thought\nso<channel|>4", "thought\nso<channel|>4"),
        ("<think>\n", "so <think>more</think>4", "so <think>more</think>4"),
        ("<think>\n", "<thinking>so</thinking>4", "<thinking>so</thinking>4"),  # another mark
        ("", "<think>so</think>4", "<think>so</think>4"),
    ],
)
def test_thinking_that_the_prompt_begins_is_not_begun_again(begun: str, text: str, rest: str) -> None:
    assert closed(begun, text) == rest
    assert committed(begun + rest) == committed(text)


def test_thinking_that_does_not_end_is_open() -> None:
    assert is_open("<think>")
    assert is_open("a<think>b</think>c<think>")
    assert not is_open("<think>a</think>")
    assert not is_open("")


class Words(NoTokenizer):
    """A token is a word of this list."""

    words = ("", "", "", "<think>", "</think>", "so", "4", " ")

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.mark.parametrize(
    ("begun", "ids", "tokens"),
    [
        ("", (5, 6, 2), 0),
        ("", (3, 5, 7, 4, 6, 2), 4),
        ("", (3, 5, 6, 2), 4),  # it does not end: all of it
        ("", (3, 5, 4, 3, 5, 4, 6), 6),
        ("<think>", (5, 7, 4, 6, 2), 3),
        ("<think>", (5, 6, 6), 3),
        ("<think>", (4, 6), 1),
        ("<think>", (5, 4), 2),
    ],
)
def test_its_tokens_are_counted(begun: str, ids: tuple[int, ...], tokens: int) -> None:
    policy = replace(tiny_policy(), tokenizer=Words(), opening=begun)
    finish: Any = "stop" if ids[-1] == 2 else "length"
    completion = Completion((1,), ids, (0.0,) * len(ids), finish)
    assert thinking_tokens(policy, completion, policy.decode(ids)) == tokens
    rollout = Rollout(None, completion, policy.decode(ids), False, {}, 0.0)  # type: ignore[arg-type]
    found = thinking_metrics(policy, [rollout, rollout])
    assert bool(found) is bool(tokens)
    if found:
        assert found["completions/thinking_length"] == tokens
        assert found["completions/answer_length"] == len(ids) - tokens
        assert found["completions/thinking_clipped_ratio"] == float(finish == "length" and is_open(rollout.text))


@pytest.mark.parametrize(("last", "cut"), [((3, 5, 5), True), ((3, 5, 4), False), ((3, 5, 4, 6), False)])
def test_of_an_episode_the_last_turn_counts(last: tuple[int, ...], cut: bool) -> None:
    """An earlier turn of four tokens that thinks, the environment's answer of one, and a turn that the budget ends."""
    policy = replace(tiny_policy(), tokenizer=Words())
    ids = (3, 5, 4, 2, 7, *last)
    given = (False,) * 4 + (True,) + (False,) * len(last)
    completion = Completion((1,), ids, (0.0,) * len(ids), "length", given)
    text, thought = policy.decode(last), min(3, len(last))
    found = thinking_metrics(policy, [Rollout(None, completion, text, False, {}, 0.0)])  # type: ignore[arg-type]
    assert found == {
        "completions/thinking_length": thought,
        "completions/answer_length": len(last) - thought,
        "completions/thinking_clipped_ratio": float(cut),
    }
    tokens, thinking = completion.drawn, thinking_tokens(policy, completion, text)
    row = GradedCompletion("a", "sampled", 0, False, False, False, "length", tokens, "?", "1", "", "", text, thinking)
    assert SplitEvaluation((row,)).summary()["thinking_truncated"] == float(cut)


@pytest.fixture
def thinker(qwen_folder: Path, tmp_path: Path) -> Path:
    """A model whose prompts end with <think>."""
    folder = tmp_path / "thinker"
    shutil.copytree(qwen_folder, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        template + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
    )
    return folder


@pytest.mark.parametrize("special", [True, False])
def test_marks_that_are_tokens_are_read_and_written_as_such(thinker: Path, special: bool) -> None:
    """Also special ones, which are no text otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(thinker)
    tokenizer.add_tokens(
        [AddedToken(mark, special=special) for mark in ("<think>", "</think>")], special_tokens=special
    )
    tokenizer.save_pretrained(thinker)
    template = (thinker / "chat_template.jinja").read_text()
    (thinker / "chat_template.jinja").write_text("{#- </think> -#}" + template)
    setup = setup_of(thinker)
    assert setup.policy.opening == "<think>\n"
    (ids,) = setup.completion_ids(["#### 4"])
    assert ids[0] == tokenizer.convert_tokens_to_ids("</think>")
    assert setup.policy.decode(ids) == "<think>\n</think>\n\n#### 4"
    assert setup.task.grade(setup.policy.decode(ids), "4").strict


def setup_of(folder: Path) -> Setup[TrainConfig]:
    return prepare(load_config(TrainConfig, [], [f"model.path={folder}", *SMALL]))


def test_a_model_that_thinks_is_graded_behind_its_thinking(thinker: Path) -> None:
    setup = setup_of(thinker)
    assert setup.policy.opening == "<think>\n"
    assert any("prompts end with <think>" in note for note in setup.notes)
    problem = setup.held_out[0]
    (ids,) = setup.prompter.completion_ids([f"#### 1</think>\n#### {problem.answer}"])
    text = setup.policy.decode(ids)
    assert text == f"<think>\n#### 1</think>\n#### {problem.answer}"
    assert setup.task.grade(text, problem.answer).strict
    (ids,) = setup.prompter.completion_ids([f"#### {problem.answer}"])  # it is still thinking
    grade = setup.task.grade(setup.policy.decode(ids), problem.answer)
    assert not grade.strict
    assert not grade.lenient


def test_gold_answers_and_solutions_end_the_thinking(thinker: Path) -> None:
    settings = [f"model.path={thinker}", *SMALL]
    training = prepare_training(load_config(TrainConfig, [], settings))
    with training.scorer:
        assert training.gold.failures == ()
    setup = training.setup
    assert check_gold(setup.task, setup.held_out, training.rewards).failures == ()
    imitation: Any = prepare(
        load_config(SftRunConfig, [], [f"model.path={thinker}", *SMALL[:2], "model.device=cpu"]), training=True
    )
    example = demonstrator(imitation, imitation.config)(imitation.held_out[0], 0)
    assert example is not None
    text = imitation.policy.decode(example.target_ids)
    assert text.startswith("<think>\n</think>\n\n")
    assert imitation.task.grade(text, imitation.held_out[0].answer).strict
    thinks = replace(imitation.held_out[0], solution="<think>\nI add.</think>\nSo.")
    example = demonstrator(imitation, imitation.config)(thinks, 0)
    assert example is not None
    assert imitation.policy.decode(example.target_ids).startswith("<think>\nI add.</think>\nSo.\n####")


def test_an_evaluation_tells_thinking_from_answers(thinker: Path) -> None:
    setup = setup_of(thinker)
    found = evaluate(setup, step=0)
    summary = found.summaries()["test"]
    assert summary["thinking_length"] > 0
    assert summary["thinking_truncated"] == summary["truncated"]  # noise ends no thinking
    row = found.test.rows[0]
    assert row.text.startswith("<think>\n")
    assert row.thinking == row.tokens
    plain = SplitEvaluation(tuple(replace(row, thinking=0) for row in found.test.rows))
    assert "thinking_length" not in plain.summary()
    json.dumps(found.table())
    Display(quiet=True).evaluation(found)


@pytest.mark.parametrize("always", [True, False])
def test_a_call_in_thinking_that_is_not_closed_is_not_carried_out(thinker: Path, always: bool) -> None:
    """Each turn has its own beginning: some templates begin no thinking behind the result of a tool."""
    if not always:
        template = (thinker / "chat_template.jinja").read_text()
        unless = "{%- if add_generation_prompt and messages[-1]['role'] != 'tool' %}{{- '<think>\\n'"
        (thinker / "chat_template.jinja").write_text(
            template.replace("{%- if add_generation_prompt %}{{- '<think>\\n'", unless)
        )
    settings = [f"model.path={thinker}", *SMALL, "environment.name=calculator", "environment.tool_prompt=none"]
    setup = prepare(load_config(TrainConfig, [], settings))
    assert setup.rules is not None
    assert setup.policy.opening == "<think>\n"
    (stop, *_) = setup.policy.stop_ids
    said = {name: (*setup.prompter.completion_ids([text])[0], stop) for name, text in TURNS.items()}
    play = Play(setup.rules, setup.held_out[0])
    assert play(0, said["thinks"]).result() == ()
    first = play(1, said["calls"]).result()
    assert first
    assert opening(setup.policy.tokenizer.decode(first)) == ("<think>\n" if always else "")
    ids = (*said["calls"], *first, *said["thinks"])
    second = play(1, ids).result()
    assert bool(second) is not always
    completions = [drawn(said["thinks"]), drawn((*ids, *second), len(said["calls"]), len(first))]
    thought, called = play.played(
        completions if always else [*completions[:1], drawn(ids, len(said["calls"]), len(first))]
    )
    assert thought.calls == ()
    assert called.calls == (ToolCall("calculate"),) * (1 if always else 2)
    text = setup.text(drawn(ids, len(said["calls"]), len(first)))
    assert text == ("<think>\n" if always else "") + TURNS["thinks"]


TURNS = {"thinks": "I try <calculate>1+1</calculate>", "calls": "So.</think><calculate>1+2</calculate>"}


def drawn(ids: tuple[int, ...], turn: int = 0, given: int = 0) -> Completion:
    """A completion of these ids, whose first turn, of so many tokens, was answered by so many."""
    marks = (False,) * turn + (True,) * given + (False,) * (len(ids) - turn - given)
    return Completion((1,), ids, (0.0,) * len(ids), "stop", marks if given else ())


def test_what_was_heard_before_the_last_turn() -> None:
    assert drawn((1, 2, 3, 4, 5), 2, 2).heard() == (3, 4)
    assert drawn((1, 2, 3, 4), 2, 2).heard() == (3, 4)
    assert drawn((1, 2, 3)).heard() == ()
    assert Completion((1,), (1, 2, 3, 4, 5), (0.0,) * 5, "stop", (False, True, False, True, False)).heard() == (4,)
