"""A study file becomes arms and comparisons, or a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrl.config.files import read_yaml
from slimrl.errors import SettingsError
from slimrl.study.spec import REPEAT_SEED, Expanded, Study, load_study
from tests.conftest import ROOT

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
MODELS = sorted((ROOT / "studies" / "on").glob("*.yaml"))

SEVEN = (
    "rollout.problems", "rollout.group_size", "steps", "optimizer.epochs", "optimizer.minibatches", "algorithm.clip_high",
    "algorithm.clip_low",
)  # fmt: skip


def study(tmp_path: Path, text: str, *overrides: str) -> Expanded:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    return load_study([str(file)], overrides)


TWO = "arms:\n  a: algorithm.kl_coef=0\n  b: [algorithm.scale_rewards=none, algorithm.clip_high=0.3]\n"


def test_one_at_a_time_is_the_base_each_arm_and_the_base_again(tmp_path: Path) -> None:
    found = study(tmp_path, TWO)
    assert [arm.name for arm in found.arms] == ["base", "a", "b", "base_again"]
    assert found.arm("a").config.algorithm.kl_coef == 0
    assert found.arm("b").config.algorithm.scale_rewards == "none"
    assert found.arm("b").config.algorithm.clip_high == 0.3
    assert [(c.name, dict(c.weights), c.kind) for c in found.comparisons] == [
        ("a", {"a": 1, "base": -1}, "switch"),
        ("b", {"b": 1, "base": -1}, "switch"),
        ("base_again", {"base_again": 1, "base": -1}, "noise"),
    ]
    assert found.tested == 2
    assert found.name == "some"


def test_arms_share_seeds_and_the_a_a_arm_has_its_own(tmp_path: Path) -> None:
    found = study(tmp_path, TWO)
    assert [found.arm(name).seed(2) for name in ("base", "a", "b")] == [2, 2, 2]
    assert found.arm("base_again").seed(2) == REPEAT_SEED + 2
    assert found.arm("base_again").config == found.arm("base").config


def test_leave_one_out_takes_each_arm_from_all_of_them(tmp_path: Path) -> None:
    found = study(tmp_path, TWO + "design: leave_one_out\n")
    assert [arm.name for arm in found.arms] == ["base", "all", "without_a", "without_b", "all_again"]
    everything, without = found.arm("all").config.algorithm, found.arm("without_a").config.algorithm
    assert (everything.kl_coef, everything.scale_rewards, everything.clip_high) == (0, "none", 0.3)
    assert (without.kl_coef, without.scale_rewards, without.clip_high) == (0.04, "none", 0.3)
    effects = {c.name: dict(c.weights) for c in found.comparisons}
    assert effects["a"] == {"all": 1, "without_a": -1}
    assert effects["all"] == {"all": 1, "base": -1}
    assert found.reference == "all"
    assert found.tested == 2
    assert found.against(found.arm("all")).name == "base"


def test_a_factorial_design_by_hand(tmp_path: Path) -> None:
    found = study(tmp_path, TWO + "design: factorial\n")
    assert [arm.name for arm in found.arms] == ["base", "a", "b", "a+b", "base_again"]
    effects = {c.name: dict(c.weights) for c in found.comparisons}
    assert effects["a"] == {"base": -0.5, "a": 0.5, "b": -0.5, "a+b": 0.5}
    assert effects["b"] == {"base": -0.5, "a": -0.5, "b": 0.5, "a+b": 0.5}
    # what a does with b, less what it does without
    assert effects["a x b"] == {"base": 1, "a": -1, "b": -1, "a+b": 1}
    assert found.tested == 3


def test_factorial_effects_recover_an_additive_truth(tmp_path: Path) -> None:
    three = TWO + "  c: algorithm.overlong_filtering=true\ndesign: factorial\n"
    found = study(tmp_path, three)
    truth = {"a": 0.03, "b": -0.01, "c": 0.002}
    values = {arm.name: 0.5 + sum(truth[f] for f in arm.name.split("+") if f in truth) for arm in found.arms}
    values |= {name: value + 0.07 for name, value in values.items() if {"a", "c"} <= set(name.split("+"))}
    for comparison in found.comparisons:
        effect = sum(weight * values[arm] for arm, weight in comparison.weights.items())
        expected = {**truth, "a": 0.03 + 0.035, "c": 0.002 + 0.035, "a x c": 0.07}.get(comparison.name, 0.0)
        assert effect == pytest.approx(expected, abs=1e-12), comparison.name


def test_files_merge_left_to_right_and_their_bases_add_up(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 7\noptimizer: {learning_rate: 1e-5}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "first.yaml").write_text(f"base: [recipe.yaml]\nsettings: {{steps: 8}}\nseeds: 3\n{TWO}")
    (tmp_path / "sub" / "second.yaml").write_text("base: [other.yaml]\nseeds: 4\narms: {a: algorithm.kl_coef=0.1}\n")
    (tmp_path / "sub" / "other.yaml").write_text("steps: 9\nrollout: {problems: 5}\n")
    files = [str(tmp_path / "first.yaml"), str(tmp_path / "sub" / "second.yaml")]
    found = load_study(files, ["rollout.group_size=3"])
    base = found.arm("base").config
    assert (base.steps, base.rollout.problems, base.rollout.group_size) == (8, 5, 3), "settings stand over every base"
    assert base.optimizer.learning_rate == 1e-5
    assert found.study.seeds == 4
    assert found.arm("a").config.algorithm.kl_coef == 0.1
    assert found.name == "first-second"
    assert load_study(files, name="mine", seeds=9).study.seeds == 9


def test_two_studies_are_not_merged(tmp_path: Path) -> None:
    """Their arms would be compared with a base that neither of them has."""
    second = tmp_path / "second.yaml"
    second.write_text("question: Does c help?\n" + TWO)
    (tmp_path / "first.yaml").write_text(TWO)
    assert load_study([str(tmp_path / "first.yaml"), str(second)]).arms, "the first has no question"
    (tmp_path / "first.yaml").write_text("question: Does a help?\n" + TWO)
    with pytest.raises(SettingsError, match=r"second\.yaml: this is a study of its own"):
        load_study([str(tmp_path / "first.yaml"), str(second)])


@pytest.mark.parametrize(
    "files", [["case-study"], ["case-study", "on/smollm2-135m"], ["proposal", "on/qwen2.5-0.5b-gsm8k"]]
)
def test_any_study_is_put_on_an_adapter_by_one_more_file(files: list[str]) -> None:
    """Its rate is the one of an adapter, which a study's own rate for all weights would not be."""
    found = load_study([str(ROOT / "studies" / f"{file}.yaml") for file in (*files, "on/lora")])
    for arm in found.arms:
        assert arm.config.model.lora.rank == 16, arm.name
        assert arm.config.optimizer.learning_rate == "auto", arm.name


def test_an_equal_token_budget_reaches_every_arm(tmp_path: Path) -> None:
    found = study(tmp_path, TWO + "budget: {equal: tokens, tokens: 5000}\n")
    assert {arm.config.max_tokens for arm in found.arms} == {5000}


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("arms: {}\nseedz: 3\n", (), "seedz is not part of a study; did you mean seeds?"),
        ("seeds: 3\n", (), "arms"),
        ("arms: {a: algorithm.clip_hgih=0.3}\n", (), "arm a: algorithm.clip_hgih is not a setting"),
        ("arms: {a: algorithm.clip_high}\n", (), "arm a: 'algorithm.clip_high' is neither"),
        ("arms: {a: algorithm.kl_coef=-1}\n", (), "arm a: algorithm.kl_coef=-1"),
        ("arms: {a: seed=3}\n", (), "arm a: seed is not an arm's to change"),
        ("arms: {a: evaluation.samples=3}\n", (), "arm a: evaluation.samples is not an arm's to change"),
        ("arms: {a: task.style=boxed}\n", (), "arm a: task.style is not an arm's to change"),
        ("arms: {base: steps=3}\n", (), "arm 'base': a name"),
        ("arms: {A: steps=3}\n", (), "arm 'A': a name"),
        ("arms: {a: steps=3}\nseeds: 0\n", (), "seeds"),
        ("arms: {a: steps=3}\nmargin: 0\n", (), "margin"),
        ("arms: {a: steps=3}\nprimary: reward\n", (), "primary"),
        ("arms: {a: steps=3}\nbase: [nowhere.yaml]\n", (), "nowhere.yaml: no such settings file"),
        ("arms: {a: steps=3}\nbase: recipe.yaml\n", (), "base is a list"),
        ("arms: {a: steps=3}\n", ("evaluation.greedy=nope",), "evaluation.greedy"),
        ("arms: {a: steps=3}\nprimary: test/greedy\n", ("evaluation.greedy=false",), "never measured"),
        ("arms: {a: steps=3}\nprimary: harder/sampled\n", ("evaluation.harder_problems=0",), "never measured"),
        ("arms: {a: steps=3}\n", ("seed=7",), "seed is not a setting of a study, since the study gives"),
        (
            "arms: {a: devices=2}\n",
            (),
            "arm a: devices is not an arm's to change, since the runs of a study are alike in that",
        ),
        (
            "arms: {a: steps=3}\nsettings: {max_tokens: 5}\n",
            (),
            "max_tokens is not a setting of a study, since the budget",
        ),
        ("arms: {a: steps=3}\n", ("log=3",), "log is a section"),
        ("arms: {a: steps=3}\nbudget: {equal: tokens}\n", (), "budget.tokens goes with"),
        ("arms: {a: steps=3}\nbudget: {tokens: 5}\n", (), "budget.tokens goes with"),
        (
            "arms: {a: optimizer.schedule=cosine}\nbudget: {equal: tokens, tokens: 5}\n",
            (),
            "arm a: max_tokens=5 ends the run at a step",
        ),
        (
            "design: leave_one_out\narms: {a: algorithm.kl_coef=0, b: [algorithm.kl_coef=1]}\n",
            (),
            "arms a and b both set algorithm.kl_coef",
        ),
        (
            "design: factorial\narms:\n" + "".join(f"  a{i}: {key}=1\n" for i, key in enumerate(SEVEN)),
            (),
            "128 combinations",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        study(tmp_path, text, *overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "A", "", "a b", "-a"])
def test_a_name_cannot_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "Some Study.yaml"
    file.write_text(TWO)
    with pytest.raises(SettingsError, match="cannot name a folder"):
        load_study([str(file)], name=name)


@pytest.mark.parametrize("file", STUDIES, ids=lambda p: p.stem)
def test_every_shipped_study_is_valid_also_on_every_shipped_model(file: Path) -> None:
    alone = load_study([str(file)])
    assert alone.study.question.endswith("?")
    for model in MODELS:
        if "as-published" in model.stem and model.stem != f"qwen2.5-0.5b-gsm8k-{file.stem.removeprefix('case-study-')}":
            continue
        equal = "budget" in read_yaml(str(model))
        if equal and alone.arm("base").config.optimizer.schedule != "constant":
            continue
        together = load_study([str(file), str(model)])
        assert {arm.name for arm in alone.arms} <= {arm.name for arm in together.arms}


def test_the_published_study_names_clip_higher_as_inert_before_it_starts_and_the_corrected_one_has_no_inert_arm() -> (
    None
):
    published = load_study([str(ROOT / "studies" / "case-study-as-published.yaml")])
    inert = [arm.name for arm in published.arms if any(remark.kind == "inert" for remark in arm.remarks)]
    assert inert == ["clip_higher"]
    corrected = load_study([str(ROOT / "studies" / "case-study.yaml")])
    assert not any(remark.kind == "inert" for arm in corrected.arms for remark in arm.remarks)
    assert len(corrected.study.arms) == 9, "eight switches and the final recipe"


def test_the_documentation_names_every_key_of_a_study() -> None:
    table = (ROOT / "docs" / "studies.md").read_text().partition("| key |")[2].partition("\n\n")[0]
    assert {line.split("`")[1] for line in table.splitlines()[2:]} == set(Study.model_fields)
    for file in STUDIES:
        assert f"`{file.name}`" in (ROOT / "docs" / "studies.md").read_text()
