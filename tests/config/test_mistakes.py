"""What a user reads: help, names that were meant, lines that fit a terminal, and notes that are said once."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from slimrl import train
from slimrl.algorithm.groups import Collected
from slimrl.cli.arguments import model_settings
from slimrl.config import foreign_names
from slimrl.config.files import build, describe_settings, dump_yaml, load_config, parse_override, settings_of
from slimrl.config.mistakes import closest, known_keys
from slimrl.config.places import anchored, is_hub_name
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.display.run import COLUMNS, WIDTH, Display, duration, fitted
from slimrl.errors import SettingsError
from slimrl.preflight.effects import inert_switches, set_by_hand
from slimrl.preflight.notes import form_note
from slimrl.preflight.observed import NOTHING_OBSERVED
from slimrl.tasks import arithmetic_texts as texts
from slimrl.tasks.styles import MARKERS, STYLES
from tests.cli.conftest import slimrl  # noqa: F401
from tests.cli.test_cli import SMALL
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("error")
VERBS = ("train", "sft", "eval", "compare", "difficulty", "sample", "grade", "doctor", "settings", "export", "study")


def refusal(*overrides: str, kind: type[RootConfig] = TrainConfig) -> str:
    """The sentence on settings that are refused."""
    with pytest.raises(SettingsError) as refused:
        load_config(kind, [], overrides)
    return str(refused.value)


# --- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["study"]])
def test_alone_it_shows_help(command: list[str], slimrl) -> None:  # noqa: F811
    alone, asked = slimrl(*command), slimrl(*command, "--help")
    assert (alone.code, alone.err) == (0, "")
    assert alone.out == asked.out
    assert len(alone.out.splitlines()) > 10, "not flattened into one line"


def test_no_description_is_cut(slimrl) -> None:  # noqa: F811
    for command in ((), ("study",)):
        usage, *lines = slimrl(*command, "--help").out.splitlines()
        assert not [line for line in lines if line.rstrip().endswith("...")], usage
        assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str, slimrl) -> None:  # noqa: F811
    shown = slimrl(verb, "--help").out
    examples = re.findall(r"^ +(slimrl .*)$", shown, re.MULTILINE)
    assert examples, shown
    assert all(example.split()[1] == verb for example in examples)


# --- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Think, then write #### and the number.", "0123456", "2026-01-05", "#", " two  blanks ", "a: b", "[x", "{y", "yes", "null", "~", "1e3",
        "0x1f", '"a" or "b"', "don't", "- x", "&a *b", "12:30:45", "", "line\nline",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["task.instruction", "model.revision", "name"])
def test_text_is_taken_as_it_stands(key: str, value: str) -> None:
    found = parse_override(f"{key}={value}")
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_quotes_around_all_of_a_text_are_yaml_s() -> None:
    assert parse_override("task.instruction='It''s 5 # or so'") == {"task": {"instruction": "It's 5 # or so"}}
    assert parse_override('model.revision="0123456"') == {"model": {"revision": "0123456"}}


def test_what_is_no_text_is_still_a_number_and_no_comment() -> None:
    assert parse_override("steps=30") == {"steps": 30}
    assert "steps='30 #40' is not valid" in refusal("steps=30 #40")
    assert load_config(TrainConfig, [], ["algorithm.surrogate = gpg"]).algorithm.surrogate == "gpg"


def test_text_in_a_file_is_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: 2026-01-05\nmodel: {revision: 0123456}\nmax_time: 90m\nsteps: 3\ntask:\n  instruction: 007\n"
    )
    config = load_config(TrainConfig, [str(file)])
    assert (config.name, config.model.revision, config.steps) == ("2026-01-05", "0123456", 3)
    assert config.task.instruction == "007"


def test_an_instruction_without_the_form_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task:\n  instruction: Think, then write #### and the number.\n")
    assert "does not name ####" in form_note(load_config(TrainConfig, [str(file)]))
    for name, style in STYLES.items():
        assert MARKERS[name] in style.instruction
        task = {"style": name} | ({"name": "code", "path": "rows.jsonl"} if name == "code" else {})
        assert not form_note(build(RootConfig, {"task": {**task, "instruction": style.instruction}}))
        assert MARKERS[name] in form_note(build(RootConfig, {"task": {**task, "instruction": "Think."}}))
    assert not form_note(RootConfig())
    assert not form_note(build(RootConfig, {"task": {"instruction": ""}}))


# --- names that were meant ---------------------------------------------------------------------------------------------

RATE = "task.success_rate (an interval of success rates, measured before the run by slimrl difficulty)"
MEANT = {
    "temperature=0.7": "did you mean rollout.temperature?",
    "scale_rewards=none": "did you mean algorithm.scale_rewards?",
    "training.temperature=1": "training.temperature is not a setting; did you mean rollout.temperature?",
    "rollouts.problems=3": "did you mean rollout?",
    "rollout.problems_per_step=4": "did you mean rollout.problems?",
    "evaluation.samples_per_problem=4": "did you mean evaluation.samples?",
    "num_generations=8": "did you mean rollout.group_size (num_generations in TRL)?",
    "rollout.num-generations=8": "did you mean rollout.group_size",
    "beta=0.1": "did you mean algorithm.kl_coef",
    "epsilon=0.2": "algorithm.clip_low (epsilon in TRL",
    "epsilon_high=0.28": "did you mean algorithm.clip_high",
    "max_steps=5": "or steps (max_steps in TRL)",
    "optimizer.lr=1e-5": "did you mean optimizer.learning_rate",
    "actor_rollout_ref.rollout.n=8": "did you mean rollout.group_size",
    "loss_type=dapo": "did you mean algorithm.aggregation=token_mean",
    "algorithm.loss_type=dapo": "did you mean algorithm.aggregation=token_mean",
    "loss_type=dr_grpo": "did you mean algorithm.aggregation=fixed_length",
    "loss_agg_mode=seq-mean-token-mean": "did you mean algorithm.aggregation=sequence_mean",
    "kl_loss_type=low_var_kl": "did you mean algorithm.kl_estimator=k3",
    "bf16=true": "did you mean model.dtype=bfloat16",
    "use_vllm=true": "has no equivalent here: SlimRL samples with its own engine",
    "report_to=wandb": "did you mean log.to",
    "log.wandb=true": "did you mean log.to=wandb",
    "lora_r=8": "did you mean model.lora.rank",
    "lora_dropout=0.1": "has no equivalent here: with dropout sampler and trainer would be two policies",
    "algorithm.clip_hihg=0.3": "did you mean algorithm.clip_high?",
    "sede=3": "did you mean seed?",
    "group_sise=3": "did you mean rollout.group_size?",
    "model.dtype=bf16": "did you mean model.dtype=bfloat16?",
    "algorithm.aggregation=dapo": "did you mean algorithm.aggregation=token_mean?",
    "algorithm.scale_rewards=false": "did you mean algorithm.scale_rewards=none?",
    "curriculum.order=easy": "did you mean easy_first?",
    "task.success_rate=[0.9, 0.1]": "is no interval of rates; write it as [0.1, 0.9]",
    "task.success_rate=[0.1, 0.9]": "has no effect without task.rates; measure the rates with slimrl difficulty",
    "task.rates=rates.jsonl": "no effect with task.name=arithmetic",
    "task.difficulty=[0.1, 0.9]": f"task.difficulty is not a setting; did you mean {RATE}?",
    "task.difficulty=0.1-0.9": f"did you mean {RATE}?",
    "task.difficulty={min: 0.1, max: 0.9}": f"did you mean {RATE}?",
    "task.difficulty_range=[0.1, 0.9]": f"did you mean {RATE}?",
    "task.max_difficulty=0.9": f"did you mean {RATE}?",
    "curriculum.difficulty=0.5": f"did you mean {RATE}?",
    "difficulty=[0.1, 0.9]": f"did you mean {RATE}?",
    "task.difficulty=level": "task.difficulty is not a setting; did you mean task.columns.difficulty?",
    "columns.difficulty=extra_info.level": "did you mean task.columns.difficulty?",
    "orchestrator.buffer.online_difficulty_filtering=true": "did you mean algorithm.dynamic_sampling=filter (",
    "difficulty_filtering.min_solve_rate=0.1": "did you mean task.success_rate (min_solve_rate in prime-rl",
    "max_time=90": "max_time=90 has no unit; write 90s, 90m or 90h",
    "rewards.custom.r.py:f=much": "write for example rewards.custom.r.py:f=0.5 or rewards.custom.r.py:f={weight: 0.5, low: 0, high: 1}",
    "rewards.custom.r.py:f=true": "takes a weight or a mapping",
    "rewards.judge.q.modle=x": "did you mean rewards.judge.q.model?",
    "rewards.judge.q.endpoint=x": "rewards.judge.q.model is missing",
    "rewards.judge.a-b.low=0": "rewards.judge.a-b is not a name of letters, digits and '_'; rename the judge",
    "rewards.custom.r.py:f.hihg=1": "did you mean rewards.custom.r.py:f.high?",
    "rewards.custom=[r.py:f]": "write for example rewards.custom.r.py:f=0.5 or rewards.custom.r.py:f={weight: 0.5, low: 0, high: 1}",
    "rollout.slots=many": "rollout.slots='many' is not valid: it should be a whole number or auto",
    "model.trust_remote_code=yes": "it should be true or false",
    "sft.batch_size=3": "it is one of slimrl sft",
    "algorithm.kl=0.1": "did you mean algorithm.kl_coef or algorithm.kl_estimator or algorithm.kl_place?",
}  # fmt: skip


@pytest.mark.parametrize("override", MEANT)
def test_what_was_meant(override: str) -> None:
    said = refusal(override)
    assert MEANT[override] in said
    assert "(the settings)" not in said
    assert "\n" not in said


@pytest.mark.parametrize("written", ["model.lora.rank: 8", "model: {lora.rank: 8}"])
def test_a_name_of_the_command_line_in_a_file_is_told_as_sections(written: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{written}\n")
    said = r"model\.lora\.rank is a name of the command line.*mine\.yaml.*; in a file write model: {lora: {rank: 8}}$"
    with pytest.raises(SettingsError, match=said):
        load_config(TrainConfig, [str(file)])


def test_a_filter_by_difficulty_is_named_wherever_it_is_written(tmp_path: Path, slimrl) -> None:  # noqa: F811
    (tmp_path / "mine.yaml").write_text("task:\n  difficulty: [0.1, 0.9]\n")
    assert f"did you mean {RATE}?" in slimrl("train", "mine.yaml").err
    with pytest.raises(SettingsError, match=re.escape(f"task.difficulty is not a setting; did you mean {RATE}?")):
        train(task={"difficulty": [0.1, 0.9]})
    asked = slimrl("settings", "task.difficulty")
    assert f"did you mean {RATE} or task.columns.difficulty?" in asked.err


@pytest.mark.parametrize("override", ["foo=1", "qwen=1", "batch=3", "model.quantize=1", "algorithm.surrogate=xyz"])
def test_without_an_idea_it_keeps_still(override: str) -> None:
    assert "did you mean" not in refusal(override)


def test_how_close_is_close() -> None:
    assert closest("lerning_rate", ["learning_rate", "steps"]) == "learning_rate"
    assert closest("stpes", ["steps"]) == "steps"
    assert closest("epsilon", ["steps"]) == ""
    assert closest("use_vllm", ["unscorable_limit"]) == ""
    assert closest("kl", ["gkl"]) == ""


@pytest.mark.parametrize("word", ["lora_dropout", "use_vllm", "logging_steps", "shuffle_dataset"])
def test_what_is_only_asked_about_need_not_be_removed(word: str) -> None:
    with pytest.raises(SettingsError, match="has no equivalent here: ") as caught:
        describe_settings(word)
    assert "remove it" not in str(caught.value)
    assert refusal(f"{word}=true").endswith("; remove it")


def test_options_that_are_settings(slimrl) -> None:  # noqa: F811
    for option, meant in (
        ("--lr", "did you mean optimizer.learning_rate"),
        ("--num-generations", "did you mean rollout.group_size"),
        ("--steps", "did you mean steps?"),
        ("--temperature", "did you mean rollout.temperature?"),
        ("--jsno", "did you mean --json?"),
        ("--use_vllm", "has no equivalent here"),
    ):
        said = slimrl("train", option, "1")
        assert (said.code, said.out) == (2, "")
        assert meant in said.err
        assert f"No such option: {option}" in said.err
    assert "did you mean" not in slimrl("train", "--foo").err


def names_page() -> str:
    """docs/names.md."""
    lines = [
        "# Names in TRL, verl and others",
        "",
        "What the settings of TRL, verl and a few of OpenRLHF and prime-rl are called in SlimRL. A run that is given one of these names is refused with the "
        "setting that is meant. `slimrl settings` explains every setting.",
        "",
        "| theirs | library | SlimRL | values and remarks |",
        "| --- | --- | --- | --- |",
    ]
    for name in foreign_names.NAMES:
        values = [f"`{theirs}`: `{ours}`" for theirs, ours in name.values.items()]
        remarks = "; ".join([*values, *([name.note] if name.note else [])])
        lines.append(f"| `{name.name}` | {name.origin} | {f'`{name.ours}`' if name.ours else 'none'} | {remarks} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_names_holds_and_is_the_page() -> None:
    keys = {*known_keys(TrainConfig), *known_keys(SftRunConfig)}
    for name in foreign_names.NAMES:
        assert name.ours in keys or (not name.ours and name.note), name
        for theirs in name.values:
            meant = foreign_names.translated(name, theirs)
            found = load_config(TrainConfig, [], [meant, *ALONE.get(meant, ())])
            assert settings_of(found)[meant.partition("=")[0]] is not None
    for key, values in foreign_names.VALUES.items():
        for ours in values.values():
            meant = ours if "=" in ours else f"{key}={ours}"
            load_config(TrainConfig, [], [meant, *ALONE.get(meant, ())])
    assert len({name.name for name in foreign_names.NAMES}) == len(foreign_names.NAMES)
    assert (ROOT / "docs" / "names.md").read_text() == names_page()


ALONE = {
    "algorithm.aggregation=microbatch_token_mean": ["optimizer.microbatch_tokens=64"],
    "algorithm.baseline=critic": ["algorithm.scale_rewards=none"],
    "algorithm.kl_place=reward": ["algorithm.kl_estimator=k1", "algorithm.scale_rewards=none"],
    "task.name=gsm8k": [],
    "task.name=jsonl": ["task.path=x.jsonl"],
}
"""What some settings need beside them."""


def test_grade_wants_its_file_first(slimrl) -> None:  # noqa: F811
    said = slimrl("grade", "--task", "math", "task.style=boxed", "outputs.jsonl")
    assert said.code == 2
    assert "FILE comes first" in said.err


# --- settings ----------------------------------------------------------------------------------------------------------


def test_settings_are_found_by_a_word(slimrl) -> None:  # noqa: F811
    keys = {row["key"] for row in describe_settings("kl")}
    assert {"algorithm.kl_coef", "algorithm.kl_estimator"} <= keys
    assert "model.pickled_weights" not in keys
    assert slimrl("settings", "no-such-word").code == 2
    assert "rollout.group_size" in slimrl("settings", "num_generations").err


def test_types_in_words() -> None:
    types = {row["key"]: row["type"] for row in describe_settings()}
    assert types["critic.learning_rate"] == "number or auto"
    assert types["rollout.slots"] == types["optimizer.microbatch_tokens"] == "integer or auto"
    assert types["rewards.custom"] == "mapping to number or {weight, low, high, completions, arguments}"
    assert types["rewards.judge"].startswith(
        "mapping to {endpoint, model, prompt, prompt_file, pattern, weight, low, high, "
    )
    assert types["task.style"] == "hashes | boxed | tags | answer | code"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "slimrl", "settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


# --- paths -------------------------------------------------------------------------------------------------------------


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "my-model").mkdir(parents=True)
    file = tmp_path / "conf" / "mine.yaml"
    file.write_text(
        "model: {path: my-model}\noutput: out\ntask: {name: jsonl, path: data/a.jsonl, test_path: /abs/b.jsonl}\n"
        "rewards: {custom: {'r.py:f': {low: 0, high: 1}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(TrainConfig, ["conf/mine.yaml"], ["name=x"])
    assert (config.model.path, config.task.path, config.task.test_path) == (
        "conf/my-model", "conf/data/a.jsonl", "/abs/b.jsonl",
    )  # fmt: skip
    assert list(config.rewards.custom) == ["conf/r.py:f"]
    assert config.output == "out", "where runs go"
    assert load_config(TrainConfig, [], ["task.name=jsonl", "task.path=data/a.jsonl"]).task.path == "data/a.jsonl"
    written = tmp_path / "runs" / "x"
    written.mkdir(parents=True)
    (written / "config.yaml").write_text(dump_yaml(config))
    monkeypatch.chdir(written)
    again = load_config(TrainConfig, ["config.yaml"])
    assert again.task.path == f"{tmp_path}/conf/data/a.jsonl"
    assert settings_of(again, absolute=True) | {"output": "out"} == settings_of(again) | {"output": "out"}
    assert list(again.rewards.custom) == [f"{tmp_path}/conf/r.py:f"]


def test_names_of_the_hub_stay_and_paths_are_told_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("Qwen/Qwen2.5-0.5B-Instruct", "a/b"):
        assert is_hub_name(name)
        assert anchored({"model": {"path": name}}, Path("conf"))["model"]["path"] == name
    for path in (
        "runs/typo",
        "./a/b",
        "/a/b",
        "~/b",
        "a/b/",
        "a/b/c",
        "gpt2",
        "mine/typo",
        "../a",
        "a/b.bin",
        "builtin",
    ):
        assert not is_hub_name(path), path
    assert anchored({"model": {"path": "builtin"}}, Path("conf"))["model"]["path"] == "builtin"
    assert anchored({"model": {"path": "./a/b"}}, Path())["model"]["path"] == "./a/b"
    for path, joined in (
        ("org/name", "org/name"), ("data/a.jsonl", "conf/data/a.jsonl"), ("data/a.csv.gz", "conf/data/a.csv.gz"), ("rows", "./conf/rows"),
        ("./org/name", "conf/org/name"), ("runs/a/b", "conf/runs/a/b"), ("builtin", "./conf/builtin"),
    ):  # fmt: skip
        assert anchored({"task": {"path": path}}, Path("conf"))["task"]["path"] == joined
    assert anchored({"model": {"path": 3}, "task": "x", "rewards": {"custom": []}}, Path("conf"))["task"] == "x"


@pytest.mark.parametrize("path", ["runs/typo", "./typo", "../typo", "/no/typo", "mine/typo", "a/b/"])
def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(path: str, slimrl, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine").mkdir()
    for verb, more in (("eval", ()), ("sample", ("Why?",))):
        said = slimrl(verb, path, *more)
        assert said.code == 2
        assert f"model.path={path}: no such run and no such folder" in said.err
        assert "Hugging Face" not in said.err


def test_a_study_s_paths_are_relative_to_its_file(tmp_path: Path) -> None:
    from slimrl.study.spec import load_study

    (tmp_path / "warm").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text(
        "settings: {task: {name: jsonl, path: a.jsonl}, evaluation: {harder_problems: 0}}\narms: {warm: model.path=./warm}\n"
    )
    expanded = load_study([str(file)])
    assert expanded.arm("warm").config.model.path == f"{tmp_path}/warm"
    assert expanded.arm("base").config.task.path == f"{tmp_path}/a.jsonl"


# --- a terminal of 80 columns ------------------------------------------------------------------------------------------

METRICS = {"num_tokens": 5_000_000.0, "update/skipped": 0.0, "sampling/fell_back": 0.0, "completions/clipped_ratio": 1.0,
           "accuracy": 1.0, "reward": -12.3456, "completions/mean_length": 12345.67, "entropy": 11.2345, "kl": 0.00123,
           "grad_norm": 123456.789}  # fmt: skip


def on_a_terminal(width: int = WIDTH) -> Display:
    display = Display()
    display.console = Console(force_terminal=True, width=width, record=True, highlight=False, file=io.StringIO())
    return display


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [9, 99_999])
def test_a_step_is_one_line_of_80_columns(factor: float, steps: int) -> None:
    display = on_a_terminal()
    shares = ("accuracy", "completions/clipped_ratio", "update/skipped", "sampling/fell_back", "num_tokens")
    metrics = {key: value if key in shares else value * factor for key, value in METRICS.items()}
    groups = (None,)
    collected = Collected(groups, (), (), 1)  # type: ignore[arg-type]
    for step in (0, steps - 2):
        timed = metrics | {"time/total": 0.5 + 1e4 * step}
        display.step(step, steps, timed, collected, task=None)  # type: ignore[arg-type]
    display.stop()
    lines = display.console.export_text().splitlines()
    assert len(lines) == 3, "a title and two rows"
    assert max(map(len, lines)) <= WIDTH
    assert all(column.title in lines[0] for column in COLUMNS)


@pytest.mark.parametrize(
    "value", [0.0, -0.04, 1.23456, -12345.678, 999.9999, 99999.5, 1e12, -1e-9, float("nan"), -1e300]
)
def test_numbers_fit(value: float) -> None:
    for digits, width in {(column.digits, column.width) for column in COLUMNS}:
        assert len(fitted(value, digits, width)) <= max(width, 6 + (value < 0) if abs(value) >= 1e100 else width)
    assert fitted(1.23456, 3, 6) == "1.235"
    assert fitted(152237.0, 0, 8) == "152,237"


def test_times_fit() -> None:
    assert [duration(s) for s in (0.4, 59.6, 61, 3599, 3660, 86400 * 3 + 7200)] == [
        "0s", "1m00s", "1m01s", "59m59s", "1h01m", "3d02h",
    ]  # fmt: skip


# --- notes -------------------------------------------------------------------------------------------------------------


def test_the_default_run_does_not_warn_about_itself() -> None:
    inert = inert_switches(TrainConfig(), NOTHING_OBSERVED)
    assert inert, "run.json and studies have it"
    assert set_by_hand(inert, TrainConfig()) == []
    chosen = load_config(TrainConfig, [], ["algorithm.clip_high=0.28"])
    assert len(set_by_hand(inert_switches(chosen, NOTHING_OBSERVED), chosen)) == 1
    as_default = load_config(TrainConfig, [], ["algorithm.clip_high=0.2"])
    assert len(set_by_hand(inert_switches(as_default, NOTHING_OBSERVED), as_default)) == 1
    written = build(TrainConfig, TrainConfig().model_dump())
    assert set_by_hand(inert_switches(written, NOTHING_OBSERVED), written) == []


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    for _ in range(2):
        display.note("the same")
        display.note("the same", "inert in this run")
    assert capsys.readouterr().err == "note: the same\n"


# --- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_from_the_shell(slimrl, tiny_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """What is said, of which step an evaluation is, who may read the files, and what a finished run refuses."""
    tiny = tiny_folder.chmod(0o755) or tiny_folder
    (tiny / "model.safetensors").chmod(0o600)
    before = os.umask(0o022)
    try:
        trained = slimrl("train", f"model.path={tiny}", "name=r", *SMALL)
        assert trained.code == 0, trained.err
        assert slimrl("export", "runs/r", "out").code == 0
    finally:
        os.umask(before)
    notes = [line for line in trained.err.splitlines() if line.startswith(("note:", "inert", "warning:"))]
    assert len(notes) == len({*notes})
    assert not [line for line in notes if line.startswith("inert")]
    assert [len(line) < WIDTH for line in notes if "memory" in line] == [True]
    files = [*(tmp_path / "runs" / "r").rglob("*"), *(tmp_path / "out").rglob("*")]
    modes = {str(file): stat.S_IMODE(file.stat().st_mode) for file in files if file.is_file()}
    assert {file: oct(mode) for file, mode in modes.items() if mode != 0o644} == {}
    for path in ("runs/r", "runs/r/final"):
        settings = SMALL[3:] if path.endswith("final") else ()
        assert "after step 2:" in slimrl("eval", path, *settings).err
    assert "after step" not in slimrl("eval", tiny, *SMALL[3:]).err
    for change, words in (
        ("steps=5", "finished with steps=2 and keeps no state of the optimizer"),
        ("steps=1", "finished with steps=2, so steps=1 is already past"),
        ("optimizer.learning_rate=0.5", "would have no effect"),
    ):
        said = slimrl("train", "--resume", "runs/r", change)
        assert said.code == 2, change
        assert words in said.err
    assert slimrl("train", "--resume", "runs/r").code == 0
    assert slimrl("train", "--resume", f"model.path={tiny}", "name=r", *SMALL).code == 0, "as a scheduler has it"
    assert slimrl("train", "--resume", "runs/r", "max_time=3h", "log.samples=7").code == 0, "they decide nothing"
    said = slimrl("train", "--resume", "runs/typo")
    assert (said.code, "runs/typo: no such run" in said.err) == (2, True)
    before = os.umask(0o077)
    try:
        assert slimrl("export", "runs/r", "mine").code == 0
    finally:
        os.umask(before)
    copies = [tmp_path / "mine", *(tmp_path / "mine").rglob("*")]
    assert {oct(stat.S_IMODE(copy.stat().st_mode) & 0o077) for copy in copies} == {"0o0"}
    for elsewhere in ("name=other", "output=there"):
        said = slimrl("train", "--resume", "runs/r", elsewhere)
        assert (said.code, "would be another run than runs/r" in said.err) == (2, True)
    assert not (tmp_path / "runs" / "other").exists()
    (tmp_path / "first.yaml").write_text("name: other\noutput: there\nlog: {samples: 7}\n")
    assert slimrl("train", "--resume", "runs/r", "first.yaml").code == 0, (
        "the settings with which it began may name a place"
    )
    assert not (tmp_path / "there").exists()


def test_samples_are_told_apart(slimrl, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import json

    several = slimrl("sample", tiny_folder, "What is 1 + 1?", "-n", "3", "rollout.max_new_tokens=5")
    assert re.findall(r"^--- (\d) of 3", several.err, re.MULTILINE) == ["1", "2", "3"]
    assert "---" not in several.out
    one = slimrl("sample", tiny_folder, "What is 1 + 1?", "rollout.max_new_tokens=5")
    assert "---" not in one.err
    as_json = json.loads(
        slimrl("sample", tiny_folder, "What is 1 + 1?", "-n", "3", "rollout.max_new_tokens=5", "--json").out
    )
    assert [c["text"] for c in as_json["completions"]] == several.out.removesuffix("\n").split("\n")[:3] or len(
        as_json["completions"]
    ) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is 1 + 1?\n"), encoding="utf-8"))
    assert slimrl("sample", tiny_folder, "-", "rollout.max_new_tokens=5").out == one.out
    for question in ("", " \n"):
        said = slimrl("sample", tiny_folder, question)
        assert (said.code, "the question is empty" in said.err) == (2, True)
    assert "-n has no effect with --greedy" in slimrl("sample", tiny_folder, "Why?", "-n", "2", "--greedy").err


def test_ctrl_c_of_a_study_says_how_to_go_on(slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import signal

    from slimrl.study import runner

    (tmp_path / "mine.yaml").write_text("seeds: 2\narms: {kl: algorithm.kl_coef=0}\n")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        monkeypatch.setattr(runner, "run_study", lambda *_, n=number, **__: signal.raise_signal(n))
        said = slimrl("study", "run", "mine.yaml", "--name", "my-study")
        assert said.code == code
        assert "the same command continues: slimrl study run mine.yaml --name my-study" in said.err


def test_the_readme_s_question_is_one_of_the_task() -> None:
    """Its own model learns sentences of these kinds and no others."""
    (question,) = re.findall(r'^slimrl sample runs/NAME "(.*?)"', (ROOT / "README.md").read_text(), re.MULTILINE)
    kinds = [text for kind in texts.KINDS for text in kind.texts]
    holes = {
        "a": f"(?:{'|'.join(texts.NAMES)})",
        "b": f"(?:{'|'.join(texts.NAMES)})",
        "n": r"\d+",
        "things": f"(?:{'|'.join(texts.THINGS)})",
    }

    def one_of(templates: tuple[str, ...] | list[str]) -> str:
        made = [re.escape(t) for t in templates]
        for hole, pattern in holes.items():
            made = [t.replace(re.escape(f"{{{hole}}}"), pattern) for t in made]
        return f"(?:{'|'.join(made)})"

    asked = one_of([texts.QUESTION, texts.QUESTION_PASSED_ON])
    assert re.fullmatch(rf"{one_of(texts.STARTS)}(?: {one_of(kinds)})+ {asked}", question)


def test_a_place_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings read from two working directories name the same files, and can be compared."""
    (tmp_path / "cfg").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "cfg" / "c.yaml").write_text(
        "model: {path: ./m}\ntask: {name: jsonl, path: d.jsonl}\nrewards: {custom: {'r.py:f': {low: 0, high: 1}}}\n"
    )
    found = []
    for folder, file in (("cfg", "c.yaml"), ("other", "../cfg/c.yaml"), (".", "cfg/c.yaml")):
        monkeypatch.chdir(tmp_path / folder)
        found.append(settings_of(load_config(TrainConfig, [file]), absolute=True))
    assert found[0] == found[1] == found[2]
    assert found[0]["model.path"] == str(tmp_path / "cfg" / "m")


def test_a_warm_start_named_again_by_its_settings_is_finished(slimrl, tiny_folder: Path) -> None:  # noqa: F811
    command = ("sft", f"model.path={tiny_folder}", "name=w", "steps=1", "sft.batch_size=4", *SMALL[4:])
    assert slimrl(*command).code == 0
    again = slimrl(*command, "--resume")
    assert (again.code, "finished" in again.err) == (0, True), again.err


def test_another_task_has_a_budget_of_its_own(tmp_path: Path) -> None:
    """What was chosen for the run's task is chosen again, and what the user set stays."""
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: {name: arithmetic}\nrollout: {max_new_tokens: 256, temperature: 0.7}\n")
    (run / "run.json").write_text('{"chosen": {"rollout.max_new_tokens": 256}}')
    assert model_settings(str(run), (), None).rollout.max_new_tokens == 256
    other = model_settings(str(run), (), "aime")
    assert (other.rollout.max_new_tokens, other.rollout.temperature) == ("auto", 0.7)
    (run / "run.json").write_text("{}")
    assert model_settings(str(run), (), "aime").rollout.max_new_tokens == 256
