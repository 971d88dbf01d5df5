"""Learning rate and token budget: by model and task, shown, stored as numbers, and 2e-4 for no pretrained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config import defaults
from slimrl.config.defaults import BUDGETS, choose
from slimrl.config.files import build, describe_settings, load_config, read_yaml, settings_of, with_chosen
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.machine.signals import Stop, Stopped
from slimrl.preflight.setup import prepare, prepare_training
from slimrl.rewards.builtin import soft_overlong
from slimrl.sft import sft
from slimrl.study.runs import planned_runs
from slimrl.study.spec import load_study
from slimrl.train import train
from tests.conftest import ROOT
from tests.quick import quick_runs  # noqa: F401

BUILTIN, SMOL, QWEN = 870_000, 134_515_008, 494_032_768
RATE, BUDGET = "optimizer.learning_rate", "rollout.max_new_tokens"
SMALL = (
    "steps=2", "rollout.problems=2", "rollout.group_size=2", "evaluation.problems=2", "evaluation.harder_problems=0", "log.model=false",
)  # fmt: skip


def never() -> int:
    raise AssertionError("no problem needs to be looked at")


def chosen(config: RootConfig, parameters: int, context: int = 2**20) -> dict[str, int | float]:
    found = choose(
        config, parameters=parameters, adapter=False, context=context, longest_prompt=never, longest_solution=lambda: 0
    )
    return dict(found.values)


def task(name: str) -> dict[str, object]:
    return {"task": {"name": name} | ({"path": "rows.jsonl"} if name in ("code", "jsonl") else {})}


@pytest.mark.parametrize("name", BUDGETS)
def test_the_built_in_model_has_what_it_had(name: str) -> None:
    for kind in (TrainConfig, SftRunConfig):
        assert chosen(build(kind, task(name)), BUILTIN) == {RATE: 2e-4, BUDGET: 64}


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("arithmetic", 256),
        ("svamp", 256),
        ("gsm8k", 512),
        ("code", 512),
        ("jsonl", 512),
        ("math", 1024),
        ("aime", 4096),
    ],
)
@pytest.mark.parametrize("parameters", [50_000_000, SMOL, QWEN, 4_000_000_000])
def test_pretrained_models_get_safe_numbers(name: str, budget: int, parameters: int) -> None:
    rate = 1e-5 if parameters < 250_000_000 else 1e-6
    assert chosen(build(TrainConfig, task(name)), parameters) == {RATE: rate, BUDGET: budget}
    assert chosen(build(SftRunConfig, task(name)), parameters) == {RATE: 2e-5, BUDGET: budget}
    assert chosen(build(RootConfig, task(name)), parameters) == {BUDGET: budget}, "nothing is trained"


def test_between_them_rates_fall_with_size_and_new_weights_are_no_pretrained_ones() -> None:
    sizes = (BUILTIN, 4_999_999, 5_000_000, 49_999_999, 50_000_000, QWEN)
    assert [chosen(TrainConfig(), size)[RATE] for size in sizes] == [2e-4, 2e-4, 1e-5, 1e-5, 1e-5, 1e-6]
    assert [chosen(TrainConfig(), size)[RATE] for size in (SMOL, 249_999_999, 250_000_000)] == [1e-5, 1e-5, 1e-6]
    assert [chosen(SftRunConfig(), size)[RATE] for size in sizes] == [2e-4, 2e-4, 1e-4, 1e-4, 2e-5, 2e-5]
    assert chosen(build(SftRunConfig, {"model": {"init": "random"}}), QWEN)[RATE] == 2e-4


@pytest.mark.parametrize(
    ("kind", "rates"), [(TrainConfig, (2e-3, 1e-4, 1e-4, 1e-4)), (SftRunConfig, (2e-3, 1e-3, 2e-4, 2e-4))]
)
def test_adapters_take_higher_rates(kind: type[RootConfig], rates: tuple[float, ...]) -> None:
    for size, rate in zip((BUILTIN, 5_000_000, SMOL, QWEN), rates, strict=True):
        found = choose(
            kind(), parameters=size, adapter=True, context=2**20, longest_prompt=never, longest_solution=lambda: 0
        )
        assert found.values[RATE] == pytest.approx(rate)
        assert "LoRA" in found.sentence


@pytest.mark.parametrize("recipe", ["gsm8k", "math", "aime", "code"])
@pytest.mark.parametrize("kind", [TrainConfig, SftRunConfig])
def test_a_recipe_for_a_task_leaves_the_rate_to_the_model(recipe: str, kind: type[RootConfig]) -> None:
    """A rate for all weights of a large model teaches an adapter or a warm start next to nothing."""
    given = ["task.path=rows.jsonl"] if recipe == "code" else []
    assert load_config(kind, [str(ROOT / "recipes" / f"{recipe}.yaml")], given).optimizer.learning_rate == "auto"


def test_what_is_set_stays() -> None:
    config = build(TrainConfig, {"optimizer": {"learning_rate": 2e-4}, "rollout": {"max_new_tokens": 7}})
    assert chosen(config, QWEN) == {}
    assert (
        choose(config, parameters=QWEN, adapter=False, context=9, longest_prompt=never, longest_solution=never).sentence
        == ""
    )
    assert with_chosen(config, {RATE: 1.0, BUDGET: 1}) == config


@pytest.mark.parametrize(
    ("context", "longest", "budget"),
    [
        (8192, 0, 4096),  # half of the context: no prompt is looked at
        (8191, 300, 4096),
        (2048, 300, 1748),
        (2048, 1900, 1024),  # one long prompt takes no other's room
        (3, 1, 2),
    ],
)
def test_the_context_bounds_the_budget(context: int, longest: int, budget: int) -> None:
    config = build(TrainConfig, task("aime"))
    prompt = never if context == 8192 else lambda: longest
    found = choose(
        config, parameters=QWEN, adapter=False, context=context, longest_prompt=prompt, longest_solution=never
    )
    assert found.values[BUDGET] == budget
    assert (f"context of {context:,}" in found.sentence) == (budget < 4096)


@pytest.mark.parametrize(("longest", "budget"), [(0, 512), (512, 512), (513, 1024), (1500, 2048), (99_999, 4096)])
def test_worked_solutions_of_a_file_get_room(longest: int, budget: int) -> None:
    config = build(SftRunConfig, task("jsonl"))
    found = choose(
        config, parameters=QWEN, adapter=False, context=2**20, longest_prompt=never, longest_solution=lambda: longest
    )
    assert found.values[BUDGET] == budget


def test_a_run_shows_its_numbers_and_keeps_them(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model, taken for one that is not tiny: what follows is what a pretrained one meets."""
    monkeypatch.setattr(defaults, "TINY", 1000)
    monkeypatch.setattr(defaults, "RL_RATES", ((0, 2e-4), (1000, 1e-5)))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}+1?", "answer": f"{i + 1}"}) + "\n" for i in range(30))
    )
    mine = [
        "task.name=jsonl",
        f"task.path={tmp_path}/rows.jsonl",
        f"model.path={tiny_folder}",
        f"output={tmp_path}",
        *SMALL,
    ]
    training = prepare_training(load_config(TrainConfig, [], mine))
    setup = training.setup
    longest = max(len(setup.prompt_ids(p)) for p in (*setup.task.train, *setup.held_out))
    training.scorer.close()
    numbers = {RATE: 1e-5, BUDGET: max(256, 512 - longest)}
    assert setup.notes[0].startswith(
        f"auto: optimizer.learning_rate=1e-05 (0.038 million parameters), {BUDGET}={numbers[BUDGET]} ("
    )
    assert dict(setup.chosen) == numbers

    config = load_config(
        TrainConfig,
        [],
        [
            *mine,
            "name=a",
            "steps=1",
            "evaluation.greedy=false",
            "algorithm.baseline=critic",
            "algorithm.scale_rewards=none",
        ],
    )
    run = Path(train(config, Display(quiet=True)).run)
    recorded = read_yaml(str(run / "config.yaml"))
    assert (recorded["optimizer"]["learning_rate"], recorded["rollout"]["max_new_tokens"]) == tuple(numbers.values())
    assert json.loads((run / "run.json").read_text())["chosen"] == numbers
    own = load_config(TrainConfig, [str(run / "config.yaml")])
    assert settings_of(prepare(own).config)[BUDGET] == numbers[BUDGET], "what evaluates a run has its number"
    monkeypatch.undo()
    assert prepare(own).config.rollout.budget == numbers[BUDGET], "whatever would be chosen now"


def test_the_rate_that_is_shown_moves_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    settings = [f"output={tmp_path}", *SMALL, "rollout.problems=4", "rollout.group_size=4"]
    auto = train(load_config(TrainConfig, [], [*settings, "name=a"]), Display(quiet=True))
    numbers = ["optimizer.learning_rate=2e-4", "rollout.max_new_tokens=64"]
    said = train(load_config(TrainConfig, [], [*settings, *numbers, "name=b"]), Display(quiet=True))
    assert (auto.weights, auto.optimizer) == (said.weights, said.optimizer)
    slower = train(
        load_config(TrainConfig, [], [*settings, "optimizer.learning_rate=1e-4", "name=c"]), Display(quiet=True)
    )
    assert slower.weights != auto.weights
    imitated = [
        f"model.path={tiny_folder}",
        "sft.batch_size=4",
        *(s for s in settings if not s.startswith(("rollout", "log"))),
    ]
    summary = sft(load_config(SftRunConfig, [], [*imitated, "name=s"]), Display(quiet=True))
    rows = [json.loads(line) for line in (Path(summary.run) / "metrics.jsonl").read_text().splitlines()]
    assert {row["learning_rate"] for row in rows} == {2e-4}
    assert json.loads((Path(summary.run) / "run.json").read_text())["chosen"] == {RATE: 2e-4, BUDGET: 64}


class StopAtOnce(Stop):
    """Stops as soon as the run has begun."""

    begun = False

    def defer(self) -> None:
        self.begun = True

    def check(self) -> None:
        if self.begun:
            raise Stopped("told to", 75)


@pytest.mark.parametrize("resumed_by", ["settings", "number"])
def test_an_interrupted_run_goes_on_with_its_numbers(
    resumed_by: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"model.path={tiny_folder}", f"output={tmp_path}", *SMALL, "name=a"]
    whole = train(load_config(TrainConfig, [], [*settings, "name=b"]), Display(quiet=True))
    with pytest.raises(Stopped):
        train(load_config(TrainConfig, [], settings), Display(quiet=True), stop=StopAtOnce())
    monkeypatch.setattr(defaults, "RL_RATES", (3.0, 3.0, 3.0))
    monkeypatch.setattr(defaults, "TINY_BUDGET", 3)
    with pytest.raises(
        SettingsError, match=r"was begun with optimizer\.learning_rate=0\.0002, which cannot become 0\.0001"
    ):
        train(load_config(TrainConfig, [], [*settings, f"{RATE}=1e-4"]), Display(quiet=True), resume=True)
    more = [f"{RATE}=2e-4", f"{BUDGET}=64"] if resumed_by == "number" else []
    again = train(load_config(TrainConfig, [], [*settings, *more]), Display(quiet=True), resume=True)
    assert (again.weights, again.tokens_generated) == (whole.weights, whole.tokens_generated)
    assert read_yaml(str(tmp_path / "a" / "config.yaml"))["rollout"]["max_new_tokens"] == 64


def test_auto_does_not_go_on_with_a_number_that_was_set(tiny_folder: Path, tmp_path: Path) -> None:
    settings = [f"model.path={tiny_folder}", f"output={tmp_path}", *SMALL, "name=a"]
    with pytest.raises(Stopped):
        train(load_config(TrainConfig, [], [*settings, f"{RATE}=1e-4"]), Display(quiet=True), stop=StopAtOnce())
    with pytest.raises(SettingsError, match=r"learning_rate=0\.0001, which cannot become 'auto'"):
        train(load_config(TrainConfig, [], settings), Display(quiet=True), resume=True)


def test_a_buffer_beyond_a_chosen_budget_is_refused(tiny_folder: Path) -> None:
    settings = [f"model.path={tiny_folder}", "rewards.soft_overlong=0.5", "rewards.overlong_buffer=65"]
    config = load_config(TrainConfig, [], settings)
    with pytest.raises(SettingsError, match=r"overlong_buffer=65 exceeds rollout\.max_new_tokens=64"):
        prepare_training(config)


def test_settings_show_auto_and_what_it_means() -> None:
    rows = {row["key"]: row for row in describe_settings()}
    for key, kind in ((RATE, "number or auto"), (BUDGET, "integer or auto")):
        assert (rows[key]["default"], rows[key]["type"]) == ("auto", kind)
        assert "docs/defaults.md" in rows[key]["meaning"]


def test_dapo_pays_a_right_answer_at_the_budget_half_way_between_right_and_wrong() -> None:
    """As with the paper's 1 and -1 and a punishment of 1 (arXiv:2503.14476, equations 7 and 13)."""
    theirs = (1 + soft_overlong(64, 64, 12), 1.0, -1.0)
    for file in ("recipes/dapo.yaml", "studies/case-study.yaml"):
        if file.startswith("recipes"):
            rewards = load_config(TrainConfig, [str(ROOT / file)]).rewards
        else:
            rewards = load_study([str(ROOT / file)], []).arm("soft_overlong").config.rewards
        ours = (rewards.correct + rewards.soft_overlong * soft_overlong(64, 64, 12), rewards.correct, 0.0)
        shares = [(at_budget - wrong) / (right - wrong) for at_budget, right, wrong in (ours, theirs)]
        assert shares[0] == shares[1] == 0.5


def test_a_study_knows_its_runs_again(tmp_path: Path) -> None:
    """A result has numbers where the study says `auto`: the same study, as long as they were chosen."""
    from slimrl.config.files import dump_yaml
    from slimrl.study.declaration import check_unchanged

    (tmp_path / "some.yaml").write_text("arms:\n  a: algorithm.kl_coef=0\nseeds: 1\n")
    run = planned_runs(load_study([str(tmp_path / "some.yaml")], []), tmp_path)[0]
    run.folder.mkdir(parents=True)
    numbers = {RATE: 2e-4, BUDGET: 64}
    (run.folder / "config.yaml").write_text(dump_yaml(with_chosen(run.arm.config, numbers)))
    (run.folder / "run.json").write_text(json.dumps({"status": "finished", "chosen": numbers}))
    check_unchanged(run)
    (run.folder / "run.json").write_text(json.dumps({"status": "finished", "chosen": {BUDGET: 64}}))
    with pytest.raises(
        SettingsError, match=r"made with optimizer\.learning_rate=0\.0002, and the study now says 'auto'"
    ):
        check_unchanged(run)
