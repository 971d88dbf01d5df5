"""Prompts over the life of a run: the same on every day, before and after, and completions read as they are written."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer, GenerationConfig

from slimrl.cli import cli
from slimrl.cli.arguments import model_settings
from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import Stopped
from slimrl.model.policy import Policy
from slimrl.preflight.doctor import examine, thinking_switch
from slimrl.preflight.prompting import prepare_model
from slimrl.preflight.setup import prepare, prepare_training
from slimrl.sft import demonstrator, sft
from slimrl.tasks.styles import TAGS
from slimrl.train import train
from tests.session.test_resume import StopAt, content

SMALL = (
    "steps=3", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=12", "evaluation.problems=3", "evaluation.harder_problems=0",
    "evaluation.greedy=false", "checkpoint.every=1",
)  # fmt: skip
DATED = "Today is {{ strftime_now('%d %b %Y %H:%M') }}.\n"
MOMENT = datetime(2026, 2, 28, 23, 59)


def model(source: Path, target: Path, *, before: str = "", **tokenizer: object) -> Path:
    """A copy of a saved model whose template begins with `before`, and whose tokenizer_config.json is changed."""
    shutil.copytree(source, target)
    template = target / "chat_template.jinja"
    template.write_text(before + template.read_text())
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer))
    return target


def config(kind: type, folder: Path, output: Path, *more: str) -> TrainConfig:
    small = [s for s in SMALL if kind is TrainConfig or not s.startswith(("rollout.problems", "rollout.group"))]
    small = [s if kind is TrainConfig else s.replace("max_new_tokens=12", "max_new_tokens=60") for s in small]
    return load_config(kind, [], [f"model.path={folder}", f"output={output}", "name=a", *small, *more])


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """What SlimRL and transformers take for now."""

    class Clock(datetime):
        @classmethod
        def now(cls, _tz: object = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr("slimrl.preflight.prompting.datetime", Clock)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def date_of(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["date"])


def test_a_run_that_goes_on_after_midnight_ends_as_one_that_was_not_disturbed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tiny_folder, tmp_path / "model", before=DATED)
    set_clock(monkeypatch, MOMENT)
    with pytest.raises(Stopped):
        train(config(TrainConfig, folder, tmp_path), Display(quiet=True), stop=StopAt(8))
    for minutes in (1, 60 * 24 * 400):
        set_clock(monkeypatch, MOMENT + timedelta(minutes=minutes))
        stop = StopAt(4 if minutes == 1 else -1)
        try:
            train(config(TrainConfig, folder, tmp_path), Display(quiet=True), stop=stop, resume=True)
        except Stopped:
            assert minutes == 1
    assert date_of(tmp_path / "a") == "2026-02-28T23:59:00"
    # on yet another day the same run is made again by its date
    again = config(TrainConfig, folder, tmp_path, "name=b", "task.date=2026-02-28 23:59")
    train(again, Display(quiet=True))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_warm_start_goes_on_on_another_day(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tiny_folder, tmp_path / "model", before=DATED)
    settings = config(SftRunConfig, folder, tmp_path, "sft.batch_size=2")
    set_clock(monkeypatch, MOMENT)
    with pytest.raises(Stopped):
        sft(settings, Display(quiet=True), stop=StopAt(5))  # type: ignore[arg-type]
    set_clock(monkeypatch, MOMENT + timedelta(days=1))
    assert sft(settings, Display(quiet=True), resume=True).steps == 3  # type: ignore[arg-type]
    assert date_of(tmp_path / "a") == "2026-02-28T23:59:00"


def test_eval_and_sample_of_a_run_ask_as_the_run_asked(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tiny_folder, tmp_path / "model", before=DATED)
    set_clock(monkeypatch, MOMENT)
    train(config(TrainConfig, folder, tmp_path, "steps=1"), Display(quiet=True))
    set_clock(monkeypatch, MOMENT + timedelta(days=1))
    run = str(tmp_path / "a")
    question = [{"role": "user", "content": "1+1?"}]
    for task in (None, "arithmetic", "svamp"):
        _, prompter, _ = prepare_model(model_settings(run, [], task))
        assert prompter.text(question).startswith("Today is 28 Feb 2026 23:59.\n")
    _, prompter, _ = prepare_model(model_settings(run, ["task.date=2020-01-01"], None))
    assert prompter.text(question).startswith("Today is 01 Jan 2020 00:00.\n")
    _, prompter, _ = prepare_model(model_settings(f"{run}/final", [], None))
    assert prompter.text(question).startswith("Today is 01 Mar 2026 23:59.\n"), "a model has no date of its own"


@pytest.mark.parametrize("greedy", [True, False])
def test_slots_hold_all_completions_of_an_evaluation(greedy: bool, tiny_folder: Path, tmp_path: Path) -> None:
    """Both splits and both ways of decoding are one batch."""
    more = ("evaluation.harder_problems=4", "evaluation.samples=2", f"evaluation.greedy={greedy}")
    setup = prepare(config(TrainConfig, tiny_folder, tmp_path, *more))
    assert setup.engine.slots == setup.memory.plan.slots == (3 + 4) * (2 + greedy)


def test_a_date_that_nothing_writes_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    setup = prepare(config(TrainConfig, tiny_folder, tmp_path, "task.date=2026-01-05"))
    assert "task.date has no effect, since the template writes no date" in setup.notes
    assert setup.prompter.date == ""


@pytest.mark.parametrize("date", ["yesterday", "05.01.2026", "2026-13-01", "2026-01-05T10:00+02:00", "[1]"])
def test_dates_that_are_none(date: str) -> None:
    with pytest.raises(SettingsError, match=r"task\.date=.* (is no date|has a time zone|is not valid)"):
        load_config(TrainConfig, [], [f"task.date={date}"])


def test_template_arguments_belong_to_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = model(tiny_folder, tmp_path / "model", before="{% if brief is defined and brief %}Be brief.\n{% endif %}")
    brief = config(TrainConfig, folder, tmp_path, "task.template_arguments.brief=true", "steps=1")
    train(brief, Display(quiet=True))
    assert examine(prepare_training(brief)).first_prompt.startswith("Be brief.\n")
    assert model_settings(str(tmp_path / "a"), [], "svamp").task.template_arguments == {"brief": True}
    state = tmp_path / "a" / "run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"status": "interrupted"}))
    for other in ((), ("task.template_arguments={brief: false}",), ("task.template_arguments.long=1",)):
        with pytest.raises(SettingsError, match=r"begun with task\.template_arguments=\{'brief': True\}"):
            train(config(TrainConfig, folder, tmp_path, "steps=1", *other), Display(quiet=True), resume=True)
    with pytest.raises(SettingsError, match=r"task\.template_arguments\.breif has no effect"):
        prepare(config(TrainConfig, folder, tmp_path, "task.template_arguments.breif=true"))


def test_a_warm_start_with_another_mixture_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    begun = config(SftRunConfig, tiny_folder, tmp_path, "sft.batch_size=2")
    with pytest.raises(Stopped):
        sft(begun, Display(quiet=True), stop=StopAt(5))  # type: ignore[arg-type]
    other = config(SftRunConfig, tiny_folder, tmp_path, "sft.batch_size=2", "sft.mixture.bare=1")
    with pytest.raises(SettingsError, match=r"begun with sft\.mixture="):
        sft(other, Display(quiet=True), resume=True)  # type: ignore[arg-type]


# Completions as text.


def as_llama(source: Path, target: Path, **core: object) -> Path:
    """The same weights as a Llama, whose tokenizer.json is read as it stands, with these parts of it changed."""
    folder = model(source, target, bos_token="<|user|>", tokenizer_class="PreTrainedTokenizerFast")
    for name, changes in (
        ("config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        ("tokenizer.json", core),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    return folder


def with_tokens(source: Path, target: Path, *tokens: str, eos: str = "") -> Path:
    """A copy of a saved model with one more special token each, among those that its vocabulary has room for."""
    shutil.copytree(source, target)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]})
    if eos:
        tokenizer.eos_token = eos
    tokenizer.save_pretrained(target)
    return target


def test_tags_that_are_special_tokens_can_be_paid(qwen_folder: Path, tmp_path: Path) -> None:
    folder = with_tokens(qwen_folder, tmp_path / "model", *TAGS)
    training = prepare_training(config(TrainConfig, folder, tmp_path, "task.style=tags"))
    assert training.gold.failures == ()
    setup = training.setup
    assert any("</SOLUTION> are special tokens" in note for note in setup.notes)
    problem = setup.task.train[0]
    (ids,) = setup.prompter.completion_ids([setup.task.gold_text(problem)])
    assert len({i for i in ids if i in setup.policy.form_ids}) == 4
    stop, other = setup.policy.stop_ids[-1], setup.policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    text = setup.policy.decode((other, *ids, other, stop))
    assert text == setup.task.gold_text(problem), "other special tokens are no text"
    assert setup.task.grade(text, problem.answer).strict


def test_a_form_that_ends_with_a_stop_token_cannot_be_paid_and_is_refused(qwen_folder: Path, tmp_path: Path) -> None:
    folder = with_tokens(qwen_folder, tmp_path / "model", *TAGS, eos="</SOLUTION>")
    with pytest.raises(
        SettingsError, match=r"cannot earn the maximum.*the tokenizer decodes the gold text .*</SOLUTION>"
    ):
        prepare_training(config(TrainConfig, folder, tmp_path, "task.style=tags"))


def test_a_form_that_the_tokenizer_does_not_keep_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Here a normalizer makes small letters of capitals."""
    folder = as_llama(tiny_folder, tmp_path / "model", normalizer={"type": "Lowercase"})
    with pytest.raises(SettingsError, match=r"the tokenizer decodes the gold text .*choose another task\.style"):
        prepare_training(config(TrainConfig, folder, tmp_path, "task.style=answer"))
    assert prepare_training(config(TrainConfig, folder, tmp_path)).gold.failures == ()


# What a run leaves.


def test_what_is_stored_says_how_it_was_evaluated(tiny_folder: Path, tmp_path: Path) -> None:
    folder = model(tiny_folder, tmp_path / "model")
    given = GenerationConfig(
        eos_token_id=4, pad_token_id=0, do_sample=True, temperature=0.3, top_k=20, top_p=0.8, repetition_penalty=1.1, no_repeat_ngram_size=3
    )  # fmt: skip
    given.save_pretrained(folder)
    with pytest.raises(Stopped):
        train(config(TrainConfig, folder, tmp_path, "rollout.temperature=0.9"), Display(quiet=True), stop=StopAt(8))
    checkpoint = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1]
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    train(config(TrainConfig, folder, tmp_path, "rollout.temperature=0.9"), Display(quiet=True), resume=True)
    result = CliRunner().invoke(cli, ["export", str(tmp_path / "a"), str(tmp_path / "exported")])
    assert result.exit_code == 0
    stops = prepare(config(TrainConfig, folder, tmp_path)).policy.stop_ids
    for place in (tmp_path / "checkpoint", tmp_path / "a" / "final", tmp_path / "exported"):
        found = GenerationConfig.from_pretrained(place)
        assert (found.do_sample, found.temperature, found.top_p, found.top_k) == (True, 0.9, 1.0, 0)
        assert (found.repetition_penalty, found.no_repeat_ngram_size) == (1.0, None)
        assert found.eos_token_id == list(stops)
        assert found.stop_strings is None


def test_sft_teaches_the_end_of_the_templates_turn(qwen_folder: Path, tmp_path: Path) -> None:
    folder = model(qwen_folder, tmp_path / "model", eos_token="<|endoftext|>")
    for template, taught in (("chat", "<|im_end|>"), ("plain", "<|endoftext|>")):
        settings = config(SftRunConfig, folder, tmp_path, f"task.template={template}")
        setup = prepare(settings)
        tokenizer = setup.policy.tokenizer
        assert tokenizer.eos_token == "<|endoftext|>"
        example = demonstrator(setup, settings)(setup.task.train[0], 0)  # type: ignore[arg-type]
        assert example is not None
        assert tokenizer.convert_ids_to_tokens(example.target_ids[-1]) == taught


@pytest.mark.parametrize("style", ["hashes", "boxed", "tags", "answer"])
def test_a_gold_answer_behind_a_plain_prompt_is_read_with_its_space(
    qwen_folder: Path, tmp_path: Path, style: str
) -> None:
    """Also one without a worked solution, whose first line is the answer, by all rewards that read the form."""
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "solution": "so" * (i % 2)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("task.template=plain", f"task.style={style}", "rewards.format=0.5", "rollout.problems=4")
    training = prepare_training(config(TrainConfig, qwen_folder, tmp_path, f"task.path={tmp_path}/rows.jsonl", *more))
    with training.scorer:
        assert training.gold.failures == ()
    setup = training.setup
    for problem in setup.task.train:
        (text,) = setup.read_back([setup.task.gold_text(problem)])
        assert text == f" {setup.task.gold_text(problem)}"
        assert setup.task.grade(text, problem.answer).strict
        assert setup.task.style.well_formed(text)


def test_a_reward_that_takes_no_space_first_is_told_of_it(qwen_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def strict(completions, **_):\n    return [float(text[:1] != ' ') for text in completions]\n"
    )
    custom = f"rewards.custom={{{tmp_path}/mine.py:strict: {{weight: 1, low: 0, high: 1}}}}"
    settings = config(TrainConfig, qwen_folder, tmp_path, "task.template=plain", custom)
    with pytest.raises(
        SettingsError, match="; allow a space first, with which a completion behind a plain prompt begins, or"
    ):
        prepare_training(settings)


def test_a_solution_that_spells_a_control_token_does_not_end_there(qwen_folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "solution": "so<|im_end|> it is"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(
        SftRunConfig, qwen_folder, tmp_path, "task.name=jsonl", f"task.path={tmp_path}/rows.jsonl", "sft.batch_size=8"
    )
    setup = prepare(settings)
    example = demonstrator(setup, settings)(setup.task.train[0], 0)  # type: ignore[arg-type]
    assert example is not None
    assert [i for i in example.target_ids if i in setup.policy.stop_ids] == [example.target_ids[-1]]
    assert setup.policy.decode(example.target_ids).startswith("so<|im_end|> it is")


def test_doctor_says_that_a_bos_is_missing(tiny_folder: Path, tmp_path: Path) -> None:
    token = AutoTokenizer.from_pretrained(tiny_folder).convert_tokens_to_ids("<|user|>")
    pieces = [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|user|>": {"id": "<|user|>", "ids": [token], "tokens": ["<|user|>"]}}
    writes_bos = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    folder = as_llama(tiny_folder, tmp_path / "model", post_processor=writes_bos)
    sentence = "begins a text with <|user|>, which the chat template does not write"
    for instruction, missing in (("brief", True), ("", False)):  # without one the template begins with <|user|>
        setup = prepare_training(config(TrainConfig, folder, tmp_path, f"task.instruction={instruction}"))
        assert any(sentence in warning for warning in examine(setup).warnings) is missing


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (('rollout.stop=["\\n"]',), "\n"),
        (('rollout.stop=["####", "\\n"]',), "\n"),
        (("task.template=plain", 'rollout.stop=[" "]'), " "),  # the first that a plain answer has
    ],
)
def test_gold_answers_behind_a_stop_text_name_it(settings: tuple[str, ...], text: str, tmp_path: Path) -> None:
    given = load_config(TrainConfig, [], [f"output={tmp_path}", *settings])
    sentence = (
        f"a completion ends in front of {text!r}, so no answer is read; set rollout.stop to texts without it, or to []"
    )
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        prepare_training(given)


def test_a_model_is_asked_with_the_template_arguments_that_it_was_trained_with(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Unless others are given, or prompts are plain."""
    switch = "{% if enable_thinking is defined and not enable_thinking %}Do not think.\n{% endif %}"
    folder = model(tiny_folder, tmp_path / "model", before=switch)

    def asked(folder: Path, *more: str) -> tuple[str, Policy]:
        setup = prepare(config(TrainConfig, folder, tmp_path, *more), training=True)
        return setup.prompter.text(setup.task.messages(setup.task.train[0])), setup.policy

    said, policy = asked(folder, "task.template_arguments.enable_thinking=false")
    assert "Do not think." in said
    policy.save(tmp_path / "kept")
    assert asked(tmp_path / "kept")[0] == said
    kept = prepare(config(TrainConfig, tmp_path / "kept", tmp_path))
    assert (
        "prompts are made with {enable_thinking: false}, as the model was trained (task.template_arguments)"
        in kept.notes
    )
    assert "Do not think." not in asked(tmp_path / "kept", "task.template_arguments.enable_thinking=true")[0]
    assert "Do not think." not in asked(tmp_path / "kept", "task.template=plain")[0]


def test_doctor_names_the_switch_for_thinking(tiny_folder: Path, tmp_path: Path) -> None:
    switch = "{% if enable_thinking is defined and not enable_thinking %}Do not think.\n{% endif %}"
    folder = model(tiny_folder, tmp_path / "model", before=switch)
    for given, said in (("", True), ("task.template_arguments.enable_thinking=false", False)):
        settings = config(TrainConfig, folder, tmp_path, *filter(None, [given]))
        found = examine(prepare_training(settings))
        assert found.stop < 0.5
        assert any("switch for thinking, which is on; " in warning for warning in found.warnings) is said


@pytest.mark.parametrize(
    ("switch", "thinks"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}Do not think.\n{% endif %}", True),
        ("{% if enable_thinking is defined and enable_thinking %}Think.\n{% endif %}", False),
        ("{% if thinking %}Think.\n{% endif %}", False),
        ("{% set thinks = enable_thinking | default(false) %}", None),
        ("{% set unthinking = true %}", None),
        ("{% if enable_thinking is defined and enable_thinking %}{{ raise_exception('no') }}{% endif %}", None),
        ("", None),
    ],
)
def test_whether_thinking_is_on_is_read_from_prompts(
    switch: str, thinks: bool | None, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = model(tiny_folder, tmp_path / "model", before=switch)
    setup = prepare_training(config(TrainConfig, folder, tmp_path))
    messages = setup.setup.task.messages(setup.setup.held_out[0])
    name = "enable_thinking" if "enable_thinking" in switch else "thinking"
    assert thinking_switch(setup.setup.prompter, messages) == (None if thinks is None else (name, thinks))
    said = [warning for warning in examine(setup).warnings if "switch for thinking" in warning]
    if thinks is None:
        assert not said
    else:
        assert said[0].startswith(f"the chat template has a switch for thinking, which is {'on' if thinks else 'off'}")
    if thinks is False:
        assert f"{{{name}: true}} turns it on" in said[0]


# A row that the template or the tokenizer cannot write.


def rows(folder: Path, questions: list[str]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": "1", "solution": "one"}) + "\n" for q in questions))
    return str(file)


@pytest.fixture
def lossy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model whose template leaves out a word, and changes what stands behind another."""
    folder = model(tiny_folder, tmp_path / "lossy")
    template = folder / "chat_template.jinja"
    changed = re.sub(r"((?:message|m)\[?\.?'?content'?\]?)", r"(\1 | replace(' zebra', ''))", template.read_text())
    assert "zebra" in changed
    template.write_text(changed)
    return folder


@pytest.mark.parametrize("kind", [TrainConfig, SftRunConfig])
def test_a_row_that_the_template_changes_is_left_out_like_any_bad_row(kind: type, lossy: Path, tmp_path: Path) -> None:
    questions = [f"How much is {i} and 1?" for i in range(30)]
    questions[4] = "How much is one zebra and 1?"
    data = ("task.name=jsonl", f"task.path={rows(tmp_path, questions)}", "rewards.gold_check=report")
    data = tuple(d for d in data if kind is TrainConfig or not d.startswith("rewards"))
    with pytest.raises(DataError) as caught:
        prepare(config(kind, lossy, tmp_path, *data))
    assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl:5: the tokenizer's chat template leaves the question")
    assert str(caught.value).endswith("; task.on_bad_row=skip leaves it out")
    skipping = config(kind, lossy, tmp_path, *data, "task.on_bad_row=skip")
    setup = prepare(skipping)
    assert [row.where for row in setup.task.rejected] == [f"{tmp_path}/rows.jsonl:5"]
    assert questions[4] not in {p.question for p in (*setup.task.train, *setup.task.test)}
    assert len(setup.task.train) + len(setup.task.test) == 29
    if kind is TrainConfig:
        train(skipping, Display(quiet=True))
        (left_out,) = (tmp_path / "a" / "rejected.jsonl").read_text().splitlines()
        assert json.loads(left_out)["where"].endswith("rows.jsonl:5")


@pytest.mark.parametrize("field", ["question", "solution"])
def test_a_row_that_the_tokenizer_cannot_write_is_left_out(
    field: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("the data spells a control token")

    monkeypatch.setattr("slimrl.model.control.ControlTokens.encode", refuse)
    token = AutoTokenizer.from_pretrained(tiny_folder).eos_token
    lines = [{"question": f"How much is {i} and 1?", "answer": "1", "solution": "one"} for i in range(30)]
    lines[6][field] = f"a {token} b"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ("task.name=jsonl", f"task.path={tmp_path}/rows.jsonl", "rewards.gold_check=report")
    with pytest.raises(DataError, match=r"rows\.jsonl:7: the data spells a control token; task\.on_bad_row=skip"):
        prepare(config(TrainConfig, tiny_folder, tmp_path, *data))
    setup = prepare(config(TrainConfig, tiny_folder, tmp_path, *data, "task.on_bad_row=skip"))
    assert [row.where for row in setup.task.rejected] == [f"{tmp_path}/rows.jsonl:7"]


def test_an_instruction_that_the_template_changes_is_no_rows_fault(lossy: Path, tmp_path: Path) -> None:
    data = ("task.name=jsonl", f"task.path={rows(tmp_path, ['one?', 'two?', 'three?'])}", "task.on_bad_row=skip")
    with pytest.raises(DataError, match=r"^the tokenizer's .* the instruction 'A zebra .*change task\.instruction, or"):
        prepare(config(TrainConfig, lossy, tmp_path, *data, "task.instruction=A zebra ends with ####"))


def test_a_problem_without_a_row_is_named(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = prepare(config(TrainConfig, tiny_folder, tmp_path))

    def refuse(*_: object) -> None:
        raise DataError("the template fails")

    monkeypatch.setattr("slimrl.model.prompts.Prompter.ids", refuse)
    with pytest.raises(DataError, match=rf"^{re.escape(setup.task.test[0].id)}: the template fails$"):
        setup.prompt_ids(setup.task.test[0])
