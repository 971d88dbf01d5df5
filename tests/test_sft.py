"""Imitation: loss on the solution and its stop token alone, shares of demonstrators, and a model that learns."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.learner.imitation import Example, imitate
from slimrl.machine.signals import Stopped
from slimrl.preflight.setup import prepare
from slimrl.session.resume import find_run
from slimrl.sft import behind_stops, demonstrator, overlong_note, sft, without_solution
from tests.conftest import ROOT
from tests.session.test_resume import StopAt
from tests.tiny import tiny_policy


def test_loss_is_on_the_target_alone_and_equals_autograd_in_the_open() -> None:
    policy = tiny_policy()
    episode = Example((9, 9, 9, 9), (2, 8, 7, 3, 2), (False, True, True, False, False))
    examples = [Example((5, 6, 7), (8, 9, 2)), Example((4,), (3, 2)), episode]
    for tokens in (1, 1000):
        policy.model.zero_grad()
        loss = imitate(policy, examples, lambda part: part.backward(), max_tokens=tokens)
        ours = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
        policy.model.zero_grad()
        policy.model.set_attn_implementation("eager")
        total = torch.zeros(())
        for example in examples:
            ids = torch.tensor([[*example.prompt_ids, *example.target_ids]])
            logprobs = torch.log_softmax(policy.model(ids[:, :-1]).logits[0], -1)
            start = len(example.prompt_ids) - 1
            imitated = ~torch.tensor(example.given or (False,) * len(example.target_ids))
            total = total - logprobs[start:].gather(1, ids[0, start + 1 :, None])[imitated].sum() / 8
        total.backward()
        theirs = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
        policy.model.set_attn_implementation("slimrl")
        assert loss == pytest.approx(total.item(), rel=1e-5)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def config_of(model: Path, output: Path, *more: str) -> SftRunConfig:
    return load_config(
        SftRunConfig,
        [],
        [f"model.path={model}", f"output={output}", "name=s", "evaluation.problems=8", "evaluation.harder_problems=0", *more],
    )  # fmt: skip


def test_mixture_shares_and_reproducible_draws(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path, "sft.mixture={solution: 1.0, bare: 3.0}")
    setup = prepare(config)
    demonstrate = demonstrator(setup, config)
    problems = list(islice(setup.task.train, 400))

    def write(step: int) -> list[str]:
        return [setup.policy.decode(e.target_ids) for problem in problems if (e := demonstrate(problem, step))]

    texts = write(0)
    assert len(texts) == 400
    kinds = Counter(setup.task.style.well_formed(text) for text in texts)
    assert 0.18 < kinds[True] / 400 < 0.32
    assert texts == write(0)
    assert texts != write(1)


def test_targets_end_with_the_stop_token_unless_they_overrun(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path, "rollout.max_new_tokens=30", "sft.mixture={solution: 1.0, rambles: 1.0}")
    setup = prepare(config)
    demonstrate = demonstrator(setup, config)
    lengths = Counter()
    for problem in islice(setup.task.train, 100):
        example = demonstrate(problem, 0)
        assert example is not None
        ids = example.target_ids
        ended = ids[-1] in setup.policy.stop_ids
        lengths[ended] += 1
        assert len(ids) <= 30
        assert ended or len(ids) == 30
    assert lengths[True] > 20
    assert lengths[False] > 20


@pytest.mark.parametrize("stop", ["\n", "\n####"])
def test_a_worked_solution_that_would_end_before_its_answer_is_refused(
    tiny_folder: Path, tmp_path: Path, stop: str
) -> None:
    config = config_of(tiny_folder, tmp_path, f"rollout.stop={json.dumps([stop, 'none'])}", "steps=1")
    sentence = (
        rf"behind {re.escape(repr(stop))}\), and would be taught without their answers; take .* out of rollout.stop"
    )
    with pytest.raises(
        SettingsError, match=rf"^500 of 500 worked solutions .* \(the first: arithmetic/\S+, {sentence}"
    ):
        sft(config, Display(quiet=True))
    assert not (tmp_path / "s" / "final").exists()
    bare = config_of(
        tiny_folder, tmp_path, f"rollout.stop={json.dumps([stop])}", "steps=1", "sft.mixture={bare: 1}", "name=b"
    )
    assert sft(bare, Display(quiet=True)).steps == 1


def test_a_few_worked_solutions_that_would_end_before_their_answers_are_left_out(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "solution": f"{i}+1={i + 1}"} for i in range(20)]
    for i in (3, 7):
        rows[i]["solution"] = f"Then.\n\n{i}+1={i + 1}"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = (f"task.path={tmp_path}/rows.jsonl", "sft.batch_size=4", "steps=1", 'rollout.stop=["\\n\\n"]')
    config = config_of(tiny_folder, tmp_path, *more)
    setup = prepare(config)
    behind = behind_stops(setup, config)
    lost = {p.id for p in setup.task.train if "Then." in p.solution}
    assert behind.ids == lost
    if lost:
        assert behind.note.startswith(f"{len(lost)} of {len(setup.task.train)} worked solutions go on behind a text of")
        assert behind.note.endswith("and are left out")
    demonstrate = demonstrator(setup, config, behind.ids)
    assert {p.id for p in setup.task.train if demonstrate(p, 0) is None} == lost
    assert overlong_note(setup, demonstrate, config, behind.ids) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["slimrl.sft"], "SOLUTIONS_LOOKED_AT", 1)  # those left out may be the first
        first = next(iter(setup.task.train)).id
        assert overlong_note(setup, demonstrator(setup, config, frozenset({first})), config, frozenset({first})) == ""
    assert sft(config, Display(quiet=True)).steps == 1


def test_what_an_automatic_stop_text_cuts_off_is_kept_by_another_setting(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"{i}+1?", "answer": str(i + 1), "solution": f"So.\nQuestion: what?\n{i}+1={i + 1}"}
        for i in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = (f"task.path={tmp_path}/rows.jsonl", "sft.batch_size=4", "steps=1", "task.template=plain")
    with pytest.raises(SettingsError, match=r"without their answers; set rollout\.stop=\[\], or reword"):
        sft(config_of(tiny_folder, tmp_path, *more), Display(quiet=True))


def test_targets_end_as_completions_do_at_a_text_of_rollout_stop(tiny_folder: Path, tmp_path: Path) -> None:
    """With the token that completes it, whatever this token holds besides, and no stop token behind."""
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "solution": f"{i}+1={i + 1}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = (f"task.path={tmp_path}/rows.jsonl", "task.instruction=be brief", "task.style=boxed", "sft.batch_size=4")
    free, bound = (config_of(tiny_folder, tmp_path, *more, f"rollout.stop={stop}") for stop in ("[]", '["$.", "none"]'))
    whole, setup = prepare(free), prepare(bound)
    assert behind_stops(setup, bound).note == ""
    for problem in setup.task.train:
        long, example = (demonstrator(one, config)(problem, 0) for one, config in ((whole, free), (setup, bound)))
        assert long is not None
        assert example is not None
        ids = example.target_ids
        assert ids == long.target_ids[: len(ids)]
        assert ids[-1] not in setup.policy.stop_ids
        assert "$." in whole.policy.decode(ids)
        assert "$." not in whole.policy.decode(ids[:-1])
        text = setup.policy.decode(ids)
        assert text.endswith(f"$\\boxed{{{problem.answer}}}")
        assert setup.task.grade(text, problem.answer).strict


def test_a_random_model_learns_the_form(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(
        tiny_folder, tmp_path, "model.init=random", "steps=60", "sft.batch_size=32", "optimizer.learning_rate=1e-2",
        "task.instruction=be brief", "rollout.max_new_tokens=40",
    )  # fmt: skip
    summary = sft(config, Display(quiet=True))
    losses = [json.loads(line)["loss"] for line in (Path(summary.run) / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 5.5
    assert losses[-1] < 1.8
    saved = json.loads((Path(summary.run) / "final" / "config.json").read_text())
    assert saved["slimrl_taught"] == {"style": "hashes", "instruction": "be brief"}
    again = prepare(config_of(Path(summary.run) / "final", tmp_path))
    assert again.task.instruction == "be brief"
    other = prepare(config_of(Path(summary.run) / "final", tmp_path, "task.style=boxed"))
    assert "boxed" in other.task.instruction, "another form than the taught one needs its own instruction"


def test_solutions_beyond_the_budget_are_left_out_and_said(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path, "rollout.max_new_tokens=20")
    setup = prepare(config)
    demonstrate = demonstrator(setup, config)
    assert "are left out" in overlong_note(setup, demonstrate, config)
    for problem in islice(setup.task.train, 100):
        example = demonstrate(problem, 0)
        assert example is None or example.target_ids[-1] in setup.policy.stop_ids
    config = config_of(tiny_folder, tmp_path, "rollout.max_new_tokens=9")
    setup = prepare(config)
    with pytest.raises(SettingsError, match="could not be imitated whole"):
        overlong_note(setup, demonstrator(setup, config), config)


def test_rows_without_a_worked_solution_are_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    """A bare answer would be taught for each, without the way to it."""
    file = tmp_path / "rows.jsonl"
    solved = [{"question": f"{i} + 1?", "answer": str(i + 1), "solution": f"{i}+1={i + 1}"} for i in range(12)]
    bare = [{"question": f"{i} + 2?", "answer": str(i + 2)} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in (*solved, *bare)))
    config = config_of(tiny_folder, tmp_path, f"task.path={file}")
    setup = prepare(config, training=True)
    found = without_solution(setup, config)
    train = setup.task.train
    lost = sum(not problem.solution for problem in train)
    assert found.note == f"{lost} of {len(train)} rows have no worked solution, and are left out"
    taught = [demonstrator(setup, config, found.ids)(problem, 0) for problem in train]
    assert sum(example is not None for example in taught) == len(train) - lost > 0
    assert without_solution(setup, load_config(SftRunConfig, [], ["name=s"])).note == ""
    file.write_text("".join(json.dumps(row) + "\n" for row in bare))
    setup = prepare(config, training=True)
    with pytest.raises(
        SettingsError, match=r"no worked solutions to imitate; add a column solution .* task\.columns\.answer=none"
    ):
        demonstrator(setup, config)


def test_solutions_behind_a_stop_text_are_counted_among_the_rows_that_have_one(
    tiny_folder: Path, tmp_path: Path
) -> None:
    solved = [{"question": f"{i} + 1?", "answer": str(i + 1), "solution": f"Question: {i}+1={i + 1}"} for i in range(8)]
    bare = [{"question": f"{i} + 2?", "answer": str(i + 2)} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (*solved, *bare)))
    config = config_of(tiny_folder, tmp_path, f"task.path={file}", 'rollout.stop=["Question:"]')
    setup = prepare(config, training=True)
    with pytest.raises(SettingsError, match=r"(\d+) of \1 worked solutions go on behind a text of rollout.stop"):
        behind_stops(setup, config, without_solution(setup, config).ids)


def test_a_batch_is_never_quietly_smaller_than_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    """40 rows of which 12 are too long leave 24 to train on: too few for a batch of 30, though not for one of 20."""
    rows = [
        {"question": f"{i}+1?", "answer": str(i + 1), "solution": "again and " * (30 if i % 3 == 0 else 0) + "so"}
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("task.name=jsonl", f"task.path={tmp_path}/rows.jsonl", "rollout.max_new_tokens=40")
    for size, fits in ((30, False), (20, True)):
        config = config_of(tiny_folder, tmp_path, *(b for b in base), f"sft.batch_size={size}")
        setup = prepare(config)
        if fits:
            assert "are left out" in overlong_note(setup, demonstrator(setup, config), config)
        else:
            with pytest.raises(SettingsError, match="could not be imitated whole"):
                overlong_note(setup, demonstrator(setup, config), config)


def test_the_default_batch_takes_what_a_small_file_has(tiny_folder: Path, tmp_path: Path) -> None:
    """Of 12 rows, of which some are held out and a solution is too long."""
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "solution": "again and " * 30 * (i == 3)} for i in range(12)]
    rows = [{**row, "solution": f"{row['solution']}so"} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = (f"task.path={tmp_path}/rows.jsonl", "rollout.max_new_tokens=40", "steps=2", "evaluation.problems=1")
    display = Display(quiet=True)
    summary = sft(config_of(tiny_folder, tmp_path, *small), display)
    assert summary.steps == 2
    (note,) = [text for text in display._said if "sft.batch_size" in text]
    assert re.fullmatch(
        r"there are \d+ training problems, so every update takes all of them instead of 64 \(sft\.batch_size\)", note
    )
    assert any("of the worked solutions exceed" in text for text in display._said)
    with pytest.raises(SettingsError, match=r"sft\.batch_size=63 exceeds the \d+ training problems; lower it"):
        sft(config_of(tiny_folder, tmp_path, *small, "sft.batch_size=63", "name=b"), display)


@pytest.mark.parametrize("recipe", ["gsm8k.yaml", "math.yaml", "aime.yaml"])
def test_task_recipes_serve_the_warm_start_too(recipe: str) -> None:
    config = load_config(SftRunConfig, [str(ROOT / "recipes" / recipe)], ["model.init=random"])
    assert config.task.name == recipe.partition(".")[0]
    assert config.rollout.max_new_tokens > 64


def test_a_warm_start_that_is_stopped_ends_as_if_it_had_not_been(tiny_folder: Path, tmp_path: Path) -> None:
    settings = (
        "steps=6",
        "sft.batch_size=8",
        "optimizer.schedule=cosine",
        "checkpoint.every=2",
        "evaluation.greedy=false",
    )
    never = StopAt(-1)
    sft(config_of(tiny_folder, tmp_path, *settings), Display(quiet=True), stop=never)
    moments = -1 - never.left
    for moment in (1, moments // 2, moments - 8, moments):
        config = config_of(tiny_folder, tmp_path, *settings, f"name=s{moment}")
        with pytest.raises(Stopped, match=rf"resume with slimrl sft --resume {tmp_path}/s{moment}$"):
            sft(config, Display(quiet=True), stop=StopAt(moment), resume=True)
        with pytest.raises(SettingsError, match="resume it with slimrl sft --resume"):
            sft(config, Display(quiet=True))
        sft(config, Display(quiet=True), resume=True)
        for file in ("final/model.safetensors", "metrics.jsonl", "evals/step-00000006.jsonl"):
            assert (tmp_path / f"s{moment}" / file).read_bytes() == (tmp_path / "s" / file).read_bytes()
        assert not [*(tmp_path / f"s{moment}" / "checkpoints").iterdir()]
        again = sft(config, Display(quiet=True), resume=True)
        assert again.steps == 6


def test_a_warm_start_is_no_training_run(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "run.json").write_text('{"verb": "sft", "status": "running"}')
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=s"])
    with pytest.raises(SettingsError, match="is no run of slimrl train"), find_run(config, "train", resume=True):
        pass
