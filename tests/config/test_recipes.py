"""Recipes and studies by name, from a clone and from inside of the package as in a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slimrl.config import recipes
from slimrl.config.files import load_config
from slimrl.config.recipes import first_line, name_of, named, names, shipped
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.study.spec import load_study
from tests.conftest import ROOT


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with recipes and studies inside, and nothing beside it."""
    package = tmp_path / "site-packages" / "slimrl"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    shutil.copytree(ROOT / "studies", package / "studies", ignore=shutil.ignore_patterns("results"))
    monkeypatch.setattr(recipes, "PACKAGE", package)
    return package


def test_every_file_has_a_name_and_a_comment() -> None:
    assert {"gsm8k", "dapo", "eval/gsm8k", "builtin/1-know"} <= set(names("recipes"))
    assert {"quick", "on/equal-tokens"} <= set(names("studies"))
    assert not any("results" in name for name in names("studies"))
    for kind in ("recipes", "studies"):
        for name in names(kind):
            assert len(first_line(name, kind)) > 10, name
            assert Path(named(f"@{name}", kind)) == ROOT / kind / f"{name}.yaml"


def test_names_resolve_inside_of_a_wheel(wheel: Path) -> None:
    assert shipped("recipes") == wheel / "recipes"
    config = load_config(TrainConfig, [named("@gsm8k", "recipes"), named("@lora", "recipes")])
    assert (config.task.name, config.model.lora.rank) == ("gsm8k", 16)
    for files in (["@quick", "@on/equal-tokens"], ["@case-study", "@on/qwen2.5-0.5b-gsm8k"]):
        expanded = load_study([named(file, "studies") for file in files])  # whose base is ../recipes/
        assert expanded.arms


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("@gsm9k", "recipes", "did you mean @gsm8k?"),
        ("@quick", "recipes", "@quick is a study; slimrl study run @quick runs it"),
        ("@dapo", "studies", "@dapo is a recipe and no part of a study"),
        ("@zzzzzz", "studies", "none of the studies that come with SlimRL; slimrl recipes lists them"),
        ("@../recipes/dapo", "studies", "none of the studies"),
    ],
)
def test_a_name_that_is_none_says_what_is_near(text: str, kind: recipes.Kind, words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        named(text, kind)


def test_other_texts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("steps=3", "recipes") == "steps=3"
    assert named("@x=3", "recipes") == "@x=3"
    monkeypatch.chdir(tmp_path)
    Path("@mine").write_text("")
    assert named("@mine", "recipes") == "@mine"  # a file of that name
    assert [name_of(text) for text in ("dapo", "recipes/dapo.yaml", "quick", "mine.yaml")] == [
        "@dapo",
        "@dapo",
        "@quick",
        "",
    ]


def test_an_installation_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "slimrl")
    with pytest.raises(SettingsError, match="holds no recipes"):
        named("@dapo", "recipes")
    assert name_of("dapo") == ""
