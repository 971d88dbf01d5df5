"""Exports and chat as a person uses them."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from transformers import pipeline

from slimrl.config.schema import TrainConfig
from slimrl.export.card import Library, model_card
from slimrl.export.modelfile import modelfile_of
from slimrl.export.run import FinishedRun, model_name, published_adapter, read_finished
from tests.conftest import ROOT

SMALL = (
    "steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "evaluation.problems=2", "evaluation.harder_problems=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig
    from slimrl.display.run import Display
    from slimrl.train import train

    folder = tmp_path_factory.mktemp("runs")
    train(
        load_config(TrainConfig, [], [f"output={folder}", "name=mine", "task.instruction=Be brief.", *SMALL]),
        Display(quiet=True),
    )
    return folder / "mine"


def test_a_model_is_taken_away_with_its_card(slimrl, finished: Path, tmp_path: Path) -> None:
    said = slimrl("export", str(finished), str(tmp_path / "m"))
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "m"))
    names = {file.name for file in (tmp_path / "m").iterdir()}
    assert names == {file.name for file in (finished / "final").iterdir()} | {"README.md"}
    card = (tmp_path / "m" / "README.md").read_text()
    for part in ("license: apache-2.0", "## Held-out accuracy", "| test | greedy | 2 |", "> Be brief.", "slimrl 0."):
        assert part in card
    assert "slimrl train steps=1 " in card
    assert " for 1 step with SlimRL" in card
    assert str(finished.parent) not in card, "no path of this machine"


def test_nothing_that_is_published_names_a_place_of_this_machine(tmp_path: Path) -> None:
    adapter = {"base_model_name_or_path": "/home/me/models/small", "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    assert json.loads(published_adapter(tmp_path)) == {"base_model_name_or_path": "small", "r": 8}
    judge = {"endpoint": "http://10.0.0.3:8000/v1", "model": "m", "prompt_file": "/home/me/p.txt", "low": 0, "high": 1}
    custom = {"/home/me/mine.py:f": {"arguments": {"words": "~/words.txt"}, "low": 0, "high": 1}}
    environment = {"name": "/home/me/env.py:Env", "arguments": {"file": "/home/me/map.txt"}}
    settings = TrainConfig.model_validate(
        {"rewards": {"judge": {"j": judge}, "custom": custom}, "environment": environment}
    )
    changed = FinishedRun(tmp_path, settings, {}).changed()
    assert changed["environment.name"] == "env.py:Env"
    told = " ".join(changed.values())
    assert "map.txt" in told
    assert "p.txt" in told
    assert "words.txt" in told
    assert not any(private in told for private in ("/home", "10.0.0.3", "~"))


@pytest.mark.parametrize(
    ("functions", "sentence"),
    [
        (["brief"], "The reward `brief` is a function of the Python program that trained the model"),
        (["brief", "kind"], "The rewards `brief`, `kind` are functions of the Python program that trained the model"),
    ],
)
def test_a_card_has_no_command_where_rewards_are_functions_of_a_program(
    finished: Path, functions: list[str], sentence: str
) -> None:
    run = read_finished(finished)
    custom = {f"__main__:{name}": 0.1 for name in functions} | {"rewards.py:other": 0.5}
    settings = TrainConfig.model_validate({**run.settings.model_dump(), "rewards": {"custom": custom}})
    card = model_card(replace(run, settings=settings))
    assert sentence in card
    assert "__main__" not in card
    assert "slimrl train" not in card
    assert '"brief": {"weight": 0.1' in card, "among the settings"


def test_a_card_says_that_rows_came_from_a_program(finished: Path, tmp_path: Path) -> None:
    """Also after the run's folder was moved; a file of the user's of the same name is a file."""
    run = shutil.copytree(finished, tmp_path / "run")
    settings = read_finished(finished).settings.model_dump()
    task = {"name": "jsonl", "path": "runs/mine/data.jsonl", "test_path": "runs/mine/test.jsonl"}
    given = TrainConfig.model_validate({**settings, "task": {**settings["task"], **task}})
    assert "on `data.jsonl`" in model_card(replace(read_finished(run), settings=given))
    (run / "data.jsonl").write_text('{"question": "a\\u2028b", "answer": "1"}\n' * 2)
    (run / "test.jsonl").write_text('{"question": "b", "answer": "1"}\n')
    card = model_card(replace(read_finished(run), settings=given))
    assert "with SlimRL on 2 rows that a Python program gave. " in card
    assert "| `task.test_path` | `1 row that a Python program gave` |" in card
    assert "The rows were given by the Python program that trained the model with `slimrl.train`;" in card
    assert ".jsonl" not in card
    assert "slimrl train" not in card


def test_a_card_names_no_file_that_is_not_there(finished: Path) -> None:
    run = read_finished(finished)
    cards = {library: model_card(run, library) for library in get_args(Library)}
    assert [library for library, card in cards.items() if "Modelfile" in card] == ["ollama"]
    assert [yaml.safe_load(card.split("---")[1])["library_name"] for card in cards.values()] == [
        "transformers",
        "peft",
        "gguf",
        "gguf",
    ]


def ended_by_texts(folder: Path, *more: str) -> Path:
    """A run whose completions end at texts."""
    from slimrl.config.files import load_config
    from slimrl.display.run import Display
    from slimrl.train import train

    settings = [f"output={folder}", "name=texts", *SMALL, "task.instruction=Be brief.", *more]
    train(load_config(TrainConfig, [], settings), Display(quiet=True))
    return folder / "texts"


@pytest.mark.parametrize(
    ("more", "texts", "prompt"),
    [
        (("task.template=plain",), ["\nQuestion:"], "Be brief.\n\nQuestion: Ann has 4 cups"),
        (
            ('rollout.stop=["=", "+"]', "rewards.gold_check=report"),
            ["=", "+"],
            "<|system|>Be brief.<|user|>Ann has 4 cups",
        ),
    ],
)
def test_the_program_of_a_card_asks_as_the_model_was_measured(
    slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], texts: list[str], prompt: str
) -> None:
    run = ended_by_texts(tmp_path, *more)
    assert slimrl("export", str(run), str(tmp_path / "m")).code == 0
    card = (tmp_path / "m" / "README.md").read_text()
    (program,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    assert f"generate(**inputs, stop_strings={texts!r}, tokenizer=tokenizer, max_new_tokens=8)" in program
    monkeypatch.chdir(tmp_path / "m")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(program, names)
    assert names["tokenizer"].decode(names["inputs"]["input_ids"][0]).startswith(prompt)
    written = names["tokenizer"].decode(names["output"][0, names["inputs"]["input_ids"].shape[1] :])
    assert written.startswith(names["completion"])
    assert not any(text in names["completion"] for text in texts)
    if len(texts) > 1:
        assert written.removeprefix(names["completion"]) in texts, "it ends at the text"


def test_a_start_that_a_run_left_has_the_name_of_the_run() -> None:
    for path, name in (
        ("runs/warm/final", "warm"), ("/home/me/runs/warm/adapter", "warm"), ("runs/final", "runs"), ("./final", "final"),
        ("../final", "final"), ("~/final", "final"), ("me/final", "me/final"), ("/home/me/models/small", "small"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("builtin", "builtin"),
    ):  # fmt: skip
        assert model_name(path) == name


def asked_as(model: Path, *more: str) -> tuple[str, tuple[str, ...]]:
    """The first prompt that SlimRL gives a model, and the texts that end its completions."""
    from slimrl.config.files import load_config
    from slimrl.config.schema import EvalConfig
    from slimrl.preflight.setup import prepare_measuring

    setup = prepare_measuring(load_config(EvalConfig, [], [f"model.path={model}", *more]))
    assert setup.task.test is not None
    prompt = setup.prompter.text(setup.task.messages(setup.task.test[0]))
    return prompt, setup.policy.stop_texts.texts


@pytest.mark.parametrize("lora", [(), ("model.lora.rank=2",)])
def test_a_model_trained_on_plain_prompts_is_measured_on_them(slimrl, tmp_path: Path, lora: tuple[str, ...]) -> None:
    run = ended_by_texts(tmp_path, "task.template=plain", 'rollout.stop=["Q:"]', *lora)
    assert slimrl("export", str(run), str(tmp_path / "m")).code == 0
    folders = [run, run / "final", tmp_path / "m", *([run / "adapter"] if lora else [])]
    for folder in folders:
        prompt, stops = asked_as(folder)
        assert prompt.partition("Question: ")[0].count("<|") == 0, folder
        assert "Question: " in prompt, folder
        assert stops == ("Q:",), folder
    chat, stops = asked_as(tmp_path / "m", "task.template=chat")
    assert (chat[:2], stops) == ("<|", ()), "the texts belong to the other form"
    assert asked_as(tmp_path / "m", 'rollout.stop=["="]')[1] == ("=",)
    if lora:
        said = slimrl("export", str(run), str(tmp_path / "a"), "--adapter")
        assert said.code == 0
        card = (tmp_path / "a" / "README.md").read_text()
        arguments = (
            "generation_config=GenerationConfig.from_pretrained(FOLDER, stop_strings=['Q:'])` and `tokenizer=tokenizer`"
        )
        assert arguments in card
        assert "(LoRA) for `builtin`" in card
    pipe = pipeline("text-generation", model=str(tmp_path / "m"))
    assert pipe("Question: 1+1?\nAnswer:", max_new_tokens=2)


def test_a_run_from_before_the_note_exports_its_stop_texts(tmp_path: Path) -> None:
    for more, texts in (
        (("task.template=plain",), ["\nQuestion:"]),
        (('rollout.stop=["="]', "rewards.gold_check=report"), ["="]),
        ((), []),
    ):
        run = ended_by_texts(tmp_path / str(len(more)), *more)
        file = run / "final" / "config.json"
        stored = json.loads(file.read_text())
        stored["slimrl_taught"] = {key: stored["slimrl_taught"][key] for key in ("style", "instruction")}
        file.write_text(json.dumps(stored))
        assert read_finished(run).stop_texts == texts
        shutil.rmtree(run.parent)


def test_the_program_of_a_card_folds_the_instruction_where_the_template_has_no_system_message(
    slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(ROOT / "slimrl" / "builtin", tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refuses + template)
    run = ended_by_texts(tmp_path, f"model.path={model}", 'rollout.stop=["="]', "rewards.gold_check=report")
    assert slimrl("export", str(run), str(tmp_path / "m")).code == 0
    card = (tmp_path / "m" / "README.md").read_text()
    (program,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path / "m")
    names: dict[str, Any] = {}
    exec(program, names)
    asked = names["tokenizer"].decode(names["inputs"]["input_ids"][0])
    assert asked.startswith("<|user|>Be brief.\n\nAnn has 4 cups")


def test_a_card_names_the_stop_ids_that_a_gguf_has_no_key_for(finished: Path, tmp_path: Path) -> None:
    run = ended_by_texts(tmp_path, 'rollout.stop=["<|user|>", "<|system|>", "<|assistant|>"]')
    assert "stop ids, so completions do not end at" not in model_card(read_finished(finished), "gguf")
    cards = {library: model_card(read_finished(run), library) for library in get_args(Library)}
    assert [library for library, card in cards.items() if "holds at most 3 stop ids" in card] == ["gguf"]
    assert [library for library, card in cards.items() if "generation_config=GenerationConfig.from" in card] == ["peft"]


def test_a_card_says_what_a_gguf_cannot_hold(finished: Path, tmp_path: Path) -> None:
    run = read_finished(ended_by_texts(tmp_path, "task.template=plain"))
    cards = {library: model_card(run, library) for library in get_args(Library)}
    for card in cards.values():
        assert (
            'A prompt is plain text, `"Question: {question}\\nAnswer:"`, behind that text and an empty line; the '
            "completion begins with a space. The tokenizer's chat template was not used."
        ) in card
        assert 'A completion ends in front of `"\\nQuestion:"`' in card
    lack = (
        "The GGUF holds the stop ids and the sampling of the measurement.\n\nA GGUF cannot hold the form of a plain prompt or stop "
        "texts. Give llama.cpp the whole prompt (`/completion` of its server). Name the stop texts with each request (`stop`),"
    )
    assert [library for library, card in cards.items() if lack in card] == ["gguf"]
    assert [library for library, card in cards.items() if "tokenizer=tokenizer" in card] == ["transformers", "peft"]
    chat = model_card(read_finished(finished), "gguf")
    assert "The GGUF holds the chat template, the stop ids" in chat
    for words in ("plain", "A completion ends in front of", "cannot hold"):
        assert words not in chat


def test_a_modelfile_of_plain_prompts_has_their_stop_text(tmp_path: Path) -> None:
    text = modelfile_of(read_finished(ended_by_texts(tmp_path, "task.template=plain")), "m.gguf").text()
    assert 'PARAMETER stop """\nQuestion:"""' in text


@pytest.mark.parametrize(("base", "said"), [("/home/me/models/small", True), ("me/small", False)])
def test_an_adapter_in_a_folder_says_that_its_base_is_a_path(
    slimrl, finished: Path, tmp_path: Path, base: str, said: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    found = slimrl("export", str(run), str(tmp_path / "m"), "--adapter")
    assert found.code == 0
    assert (f"the adapter is for {base}, by its path on this machine" in found.err) is said
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert "/home/me" not in (tmp_path / "m" / "README.md").read_text()


def test_what_would_be_pushed_is_listed_and_not_sent(slimrl, finished: Path) -> None:
    said = slimrl("export", str(finished), "me/mine", "--for", "hub")
    assert said.code == 0
    assert "model.safetensors" in said.err
    assert "nothing was sent; add --push to send this to https://huggingface.co/me/mine (private)" in said.err


def test_a_modelfile_has_the_runs_instruction_and_sampling(slimrl, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    said = slimrl("export", str(finished), str(tmp_path / "m"), "--for", "ollama", "--type", "q8_0")
    assert said.code == 0
    assert {file.name for file in (tmp_path / "m").iterdir()} == {"mine-q8_0.gguf", "Modelfile", "README.md"}
    lines = (tmp_path / "m" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./mine-q8_0.gguf"
    assert {
        'SYSTEM "Be brief."',
        'PARAMETER stop "<|end|>"',
        "PARAMETER temperature 1",
        "PARAMETER num_predict 8",
        "PARAMETER num_ctx 512",
    } <= {*lines}


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_has_its_exit_code_and_leaves_nothing(
    slimrl, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    target = tmp_path / "m"
    if exists:
        target.mkdir()

    def full(source: Path, copy: Path) -> None:
        if source.name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(copy))
        copy.write_bytes(source.read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", full)
        said = slimrl("export", str(finished), str(target))
    assert said.code == 74
    assert "No space left on device" in said.err
    assert [file.name for file in tmp_path.rglob("*")] == (["m"] if exists else [])
    assert slimrl("export", str(finished), str(target)).code == 0, "nothing is in the way of the next try"
    assert {file.name for file in target.iterdir()} == {file.name for file in (finished / "final").iterdir()} | {
        "README.md"
    }
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_modelfile_that_cannot_be_written_comes_before_the_weights(
    slimrl, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("slimrl.export.gguf")
    monkeypatch.setattr(gguf, "write_gguf", lambda *_, **__: pytest.fail("the weights came first"))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("Be brief.", 'Use """.'))
    said = slimrl("export", str(run), str(tmp_path / "m"), "--for", "ollama")
    assert said.code == 3
    assert "three quotes in a row" in said.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--type", "f16"), "--type has no effect with --for transformers"),
        (("--for", "gguf", "--adapter"), "--adapter has no effect with --for gguf"),
        (("--push",), "--push and --public have no effect"),
        (("--for", "hub"), "is no name on the Hub; write it as owner/name"),
    ],
)
def test_options_that_do_not_act_are_refused(
    slimrl, finished: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    said = slimrl("export", str(finished), str(tmp_path / "m"), *options)
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "m").exists()


def test_without_the_package_gguf_is_a_sentence(
    slimrl, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = slimrl("export", str(finished), str(tmp_path / "m"), "--for", "gguf")
    assert (said.code, "pip install 'slimrl[gguf]'" in said.err) == (2, True)


def test_a_chat_answers_every_line_of_stdin(slimrl, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    question = "Ann has 4 cups and buys 5 more. How many cups does Ann have now?"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n\n/reset\n{question}\n/quit\n{question}\n"))
    said = slimrl("chat", "builtin", "--greedy")
    assert said.code == 0
    assert said.out == "4+5=9\n#### 9\n" * 2
    assert "the conversation is forgotten" in said.err


def test_the_page_on_exports_names_every_option() -> None:
    page = (ROOT / "docs" / "export.md").read_text()
    for word in (
        "--for ollama",
        "--for gguf",
        "--for hub",
        "--push",
        "--public",
        "--type q8_0",
        "--adapter",
        "slimrl chat",
    ):
        assert word in page
