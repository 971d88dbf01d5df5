"""What a user types: data on stdout, human text on stderr, and mistakes answered in one sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from slimrl.cli.output import open_display
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.study import runner
from slimrl.study.runs import planned_runs
from slimrl.study.spec import load_study
from tests.conftest import ROOT
from tests.study.folders import write_run


@pytest.fixture
def files(tmp_path: Path, tiny_folder: Path) -> dict[str, Path]:
    """The material of the mistakes."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    def model(name: str) -> Path:
        return Path(shutil.copytree(tiny_folder, tmp_path / name))

    pickled = model("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    silent = model("silent")
    (silent / "generation_config.json").unlink()
    for file in ("config.json", "tokenizer_config.json"):
        data = json.loads((silent / file).read_text())
        for key in ("eos_token_id", "eos_token", "chat_template"):
            data.pop(key, None)
        (silent / file).write_text(json.dumps(data))
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    plain = model("plain")
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    torn = model("torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    deeper = model("deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3})
    )
    wordless = model("wordless")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (wordless / file).unlink(missing_ok=True)
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"{i}+1={i + 1}"} for i in range(40)]
    good = "".join(json.dumps(row) + "\n" for row in rows)
    return {
        "pickled": pickled,
        "silent": silent,
        "plain": plain,
        "torn": torn,
        "deeper": deeper,
        "wordless": wordless,
        "loop.yaml": write("loop.yaml", "task: &a\n  arithmetic: *a\n"),
        "listkey.yaml": write("listkey.yaml", "[a, b]: 1\n"),
        "control.yaml": write("control.yaml", "name: \x01x\n"),
        "number.yaml": write("number.yaml", "1: 1\n"),
        "misspelt.yaml": write("misspelt.yaml", "tsk: {name: gsm8k}\n"),
        "good.jsonl": write("good.jsonl", good),
        "bad.jsonl": write("bad.jsonl", good + '{"question": "and now?"}\n'),
        "broken.jsonl": write("broken.jsonl", good + '{"question": "and\n'),
        "worded.jsonl": write("worded.jsonl", good + '{"question": "Who?", "answer": "nobody"}\n'),
        "latex.jsonl": write(
            "latex.jsonl", good + json.dumps({"question": "Half of x?", "answer": r"\\frac{x}{2}"}) + "\n"
        ),
        "unsolved.jsonl": write("unsolved.jsonl", "".join(json.dumps(r | {"solution": ""}) + "\n" for r in rows)),
        "broken.yaml": write("broken.yaml", "algorithm:\n  clip_high: [0.2\n"),
        "twice.yaml": write("twice.yaml", "steps: 3\nsteps: 4\n"),
        "list.yaml": write("list.yaml", "- steps\n"),
        "reward.py": write(
            "reward.py",
            "def boom(completions, **_):\n    raise ValueError('boom')\n\nshort = lambda completions, **_: [1.0]\n",
        ),
        "graded.jsonl": write("graded.jsonl", '{"id": "a", "answer": "3", "completion": "#### 3"}\n{"id": "b"}\n'),
    }


TASK = ("task.name=jsonl", "task.path={good.jsonl}", "task.instruction=")
CUSTOM = 'rewards.custom={{"{reward.py}:%s": {{low: 0, high: 1}}}}'
MISTAKES = {
    "misspelt key": (2, "did you mean algorithm.clip_high?", "train", "algorithm.clip_hihg=0.3"),
    "key without its section": (2, "did you mean algorithm.clip_high?", "train", "clip_high=0.3"),
    "wrong type": (2, "steps='many'", "train", "steps=many"),
    "neither a number nor auto": (2, "optimizer.learning_rate='fast' is not valid: it should be a number or auto", "train", "optimizer.learning_rate=fast"),
    "a count below one, where auto may stand": (2, "rollout.slots=0 is not valid: it should be greater than or equal to 1 or auto", "train", "rollout.slots=0"),
    "value outside its range": (2, "optimizer.learning_rate=-1", "train", "optimizer.learning_rate=-1"),
    "unknown choice": (2, "did you mean token_mean?", "train", "algorithm.aggregation=token_maen"),
    "a value for a section": (2, "rollout is a section", "train", "rollout=8"),
    "missing settings file": (2, "no such settings file", "train", "recipes/none.yaml"),
    "broken YAML": (2, "broken.yaml:", "train", "{broken.yaml}"),
    "a key set twice": (2, "twice.yaml:2: not valid YAML (steps is set twice)", "train", "{twice.yaml}"),
    "YAML that is no mapping": (2, "a settings file is a mapping", "train", "{list.yaml}"),
    "group of one": (2, "rollout.group_size=1 has no group baseline", "train", "rollout.group_size=1"),
    "critic without a critic": (2, "critic has no effect without algorithm.baseline=critic", "train", "critic.whiten=false"),
    "penalty blown up": (
        2, "set algorithm.scale_rewards=none or batch", "train", "algorithm.kl_place=reward", "algorithm.kl_estimator=k1",
    ),
    "gspo by the token": (2, "set algorithm.surrogate=gspo_token", "train", "algorithm.surrogate=gspo", "algorithm.entropy_share=0.2"),
    "gpg without a baseline": (2, "which needs algorithm.baseline=", "train", "algorithm.surrogate=gpg", "algorithm.baseline=none"),
    "critic and groups": (2, "critic knows no groups", "train", "algorithm.baseline=critic"),
    "two punishments": (
        2, "rewards.zero_truncated pays", "train", "rewards.zero_truncated=true", "rewards.soft_overlong=1",
    ),
    "easy first by tokens": (
        2, "easy_first moves over steps", "train", "curriculum.order=easy_first", "max_tokens=5000",
    ),
    "dual clip below one": (2, "algorithm.dual_clip=0.5 would cut", "train", "algorithm.dual_clip=0.5"),
    "empty gkl": (2, "leave nothing; set one", "train", "algorithm.gkl.mse=0", "algorithm.gkl.cross_entropy=0"),
    "top-p below one": (2, "rollout.top_p=0.9 would train on another distribution", "train", "rollout.top_p=0.9"),
    "unknown task": (2, "did you mean gsm8k?", "train", "task.name=gsm9k"),
    "jsonl without a path": (2, "needs task.path=", "train", "task.name=jsonl"),
    "missing data file": (3, "none.jsonl", "train", "model.path={tiny}", "task.name=jsonl", "task.path=none.jsonl"),
    "row without an answer": (3, "bad.jsonl:41", "train", "model.path={tiny}", "task.name=jsonl", "task.path={bad.jsonl}"),
    "a split of a task without rows": (2, "task.split has no effect with task.name=arithmetic, which reads no data", "train", "task.split=train"),
    "a task without rows": (2, "task.on_bad_row has no effect with task.name=arithmetic", "train", "task.on_bad_row=skip"),
    "grade: rows left out": (2, "task.on_bad_row=skip has no effect on grading", "grade", "--task", "gsm8k", "{graded.jsonl}", "task.on_bad_row=skip"),
    "row that is no JSON": (3, "broken.jsonl:41", "train", "model.path={tiny}", "task.name=jsonl", "task.path={broken.jsonl}"),
    "answer that cannot score": (2, "cannot earn the maximum", "train", "model.path={tiny}", "task.name=jsonl", "task.path={worded.jsonl}"),
    "missing model": (2, "no such folder", "train", "model.path=./nowhere"),
    "model with a pickle only": (3, "only pickled weights (pytorch_model.bin)", "train", "model.path={pickled}"),
    "torn weights": (3, "transformers cannot load it", "train", "model.path={torn}"),
    "no stop id": (2, "has no stop id", "train", "model.path={silent}"),
    "no chat template": (2, "the tokenizer has no chat template", "train", "model.path={plain}", "task.template=chat"),
    "reward that raises": (2, "boom", "train", "model.path={tiny}", *TASK, CUSTOM % "boom"),
    "reward of the wrong length": (2, "short", "train", "model.path={tiny}", *TASK, CUSTOM % "short"),
    "reward that is not there": (2, "brevity", "train", "model.path={tiny}", *TASK, CUSTOM % "brevity"),
    "no reward at all": (2, "every reward has weight 0", "train", "rewards.correct=0"),
    "case-study rewards without tags": (2, "tags", "train", "model.path={tiny}", "rewards.check_answer=1"),
    "switch without effect": (2, "has no effect without algorithm.dynamic_sampling=refill", "train", "algorithm.refill_budget=2.0"),
    "more minibatches than problems": (2, "groups are never split", "train", "optimizer.minibatches=64"),
    "budget beyond the context": (2, "fills the model's context", "train", "model.path={tiny}", "rollout.max_new_tokens=5000"),
    "more problems than there are": (2, "rollout.problems=64 exceeds the", "train", "model.path={tiny}", *TASK, "rollout.problems=64"),
    "remote code without a pin": (2, "needs model.revision=", "train", "model.trust_remote_code=true"),
    "name that leaves the folder": (2, "lower-case letters", "train", "name=../../x"),
    "settings that refer to themselves": (2, "task.arithmetic", "train", "{loop.yaml}"),
    "a list as a key": (2, "is not the name of a setting", "train", "{listkey.yaml}"),
    "a control character": (2, "not valid YAML", "train", "{control.yaml}"),
    "a number as a key": (2, "is not the name of a setting", "train", "{number.yaml}"),
    "dots and nothing else": (2, "neither a settings file nor", "train", "..=3"),
    "a model as settings": (2, "is a model, not a settings file; write model.path=", "train", "{tiny}"),
    "an empty model path": (2, "model.path is empty", "train", "model.path="),
    "a weight that is no number": (2, "rewards.correct=nan", "train", "rewards.correct=.nan"),
    "evaluation schedule in sft": (2, "evaluation.every has no effect in slimrl sft", "sft", "evaluation.every=5"),
    "harder problems without a harder split": (2, "has no harder split", "train", "task.name=gsm8k", "evaluation.harder_problems=5"),
    "revision of a local folder": (2, "has no effect on the local folder", "train", "model.path={tiny}", "model.revision=v2"),
    "config and weights of two models": (3, "would be random", "train", "model.path={deeper}"),
    "no tokenizer": (3, "tokenizer", "train", "model.path={wordless}"),
    "an output folder that is a file": (2, "is not a folder that can be written", "train", "model.path={tiny}", "output={good.jsonl}"),
    "solutions beyond the budget": (2, "could not be imitated whole", "sft", "model.path={tiny}", "rollout.max_new_tokens=8"),
    "a question beyond the context": (2, "exceed the model's context", "sample", "{tiny}", "apples " * 900),
    "a question that is not UTF-8": (2, "not UTF-8", "sample", "{tiny}", "\udcff"),
    "a question behind the settings": (2, "the question comes before settings: slimrl sample", "sample", "{tiny}", "seed=1", "How many = 2?"),
    "eval: setting of a run": (2, "optimizer.epochs has an effect only in slimrl train", "eval", "{tiny}", "seed=1", "optimizer.epochs=2"),
    "sample: setting of a run": (2, "steps has an effect only in slimrl train", "sample", "{tiny}", "How many?", "steps=3"),
    "grade: setting without effect": (2, "no effect on grading", "grade", "--task", "gsm8k", "{graded.jsonl}", "seed=4"),
    "eval: output in no folder": (2, "no such folder", "eval", "{tiny}", "--out", "none/x.jsonl"),
    "eval: misspelt section in a file": (2, "tsk is not a setting", "eval", "{tiny}", "{misspelt.yaml}"),
    "training from noise": (2, "use slimrl sft first", "train", "model.init=random"),
    "batch larger than the data": (2, "sft.batch_size=50 exceeds", "sft", "model.path={tiny}", *TASK, "sft.batch_size=50", "rollout.max_new_tokens=30"),
    "LaTeX answers read as numbers": (2, "set task.checker=symbolic", "train", "model.path={tiny}", "task.name=jsonl", "task.path={latex.jsonl}"),
    "unknown demonstrator": (2, "no such demonstrator", "sft", "model.path={tiny}", "sft.mixture.solutoin=1"),
    "no solutions to imitate": (2, "no worked solutions", "sft", "model.path={tiny}", "task.name=jsonl", "task.path={unsolved.jsonl}", "sft.batch_size=8"),
    "unknown verb": (2, "No such command", "trian"),
    "unknown option": (2, "No such option", "train", "--jsno"),
    "unknown settings section": (2, "did you mean algorithm?", "settings", "algoritm"),
    "grade: bad row": (3, "graded.jsonl:2", "grade", "--task", "gsm8k", "{graded.jsonl}"),
    "grade: missing file": (3, "none.jsonl", "grade", "--task", "gsm8k", "none.jsonl"),
    "eval: no such run": (2, "no such folder", "eval", "runs/none/at/all"),
    "export: no such run": (3, "holds no final/ model", "export", "none", "somewhere"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, slimrl, files: dict[str, Path], tiny_folder: Path) -> None:
    code, sentence, *arguments = MISTAKES[mistake]
    names = {**files, "tiny": tiny_folder}

    def fill(text: str) -> str:
        for name, path in names.items():
            text = text.replace("{" + name + "}", str(path))
        return text.replace("{{", "{").replace("}}", "}")

    result = slimrl(*map(fill, arguments))
    lines = result.err.strip().splitlines()
    assert result.code == code, result.err
    assert sentence in result.err
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_an_existing_run_is_never_overwritten(slimrl, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "precious").write_text("x")
    result = slimrl("train", f"model.path={tiny_folder}", "name=mine", "steps=1")
    assert result.code == 2
    assert "never overwritten" in result.err
    assert [p.name for p in (tmp_path / "runs" / "mine").iterdir()] == ["precious"]


def test_a_refused_start_leaves_no_run_and_a_failed_one_says_so(slimrl, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "calls = 0\n"
        "def late(completions, **_):\n"
        "    global calls\n"
        "    calls += len(completions) > 1\n"
        "    if calls > LIMIT: raise ValueError('late')\n"
        "    return [1.0] * len(completions)\n"
    )
    text = (tmp_path / "late.py").read_text()
    base = ("train", f"model.path={tiny_folder}", *SMALL, "evaluation.harder_problems=0", "rewards.custom.late.py:late.high=1",
            "rewards.custom.late.py:late.low=0")  # fmt: skip
    (tmp_path / "late.py").write_text(text.replace("LIMIT", "2"))
    early = slimrl(*base, "name=early")
    assert early.code == 2
    assert not (tmp_path / "runs").exists(), "a reward that fails in the probe stops before a run directory is made"
    (tmp_path / "late.py").write_text(text.replace("LIMIT", "17"))
    late = slimrl(*base, "name=late")
    assert late.code == 2, late.err
    state = json.loads((tmp_path / "runs" / "late" / "run.json").read_text())
    assert state["status"] == "failed"
    assert "reward late" in state["reason"]


def test_a_mistake_leaves_the_output_file_as_it_was(slimrl, tmp_path: Path) -> None:
    stored = '{"id": "a", "answer": "3", "completion": "#### 3"}\n'
    (tmp_path / "stored.jsonl").write_text(stored)
    (tmp_path / "bad.jsonl").write_text(stored + '{"id": "b"}\n')
    (tmp_path / "old.jsonl").write_text("precious")
    assert slimrl("grade", "stored.jsonl", "--task", "gsm8k", "--out", "stored.jsonl").code == 2
    assert slimrl("grade", "bad.jsonl", "--task", "gsm8k", "--out", "old.jsonl").code == 3
    assert slimrl("eval", "nosuch", "--out", "old.jsonl").code == 2
    assert slimrl("eval", "nosuch", "--out", "new.jsonl").code == 2
    assert not (tmp_path / "new.jsonl").exists()
    assert (tmp_path / "stored.jsonl").read_text() == stored
    assert (tmp_path / "old.jsonl").read_text() == "precious"
    assert slimrl("grade", "stored.jsonl", "--task", "gsm8k", "--out", "old.jsonl").code == 0
    assert json.loads((tmp_path / "old.jsonl").read_text())["strict"] is True


def test_help_imports_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, slimrl.cli as c\n"
        "sys.argv = ['slimrl', '--help']\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: slimrl" in done.stdout


def test_settings_lists_every_key_with_its_meaning(slimrl) -> None:
    rows = json.loads(slimrl("settings", "--json").out)
    assert all(row["meaning"] for row in rows), [row["key"] for row in rows if not row["meaning"]]
    assert {"seed", "algorithm.clip_high", "task.arithmetic.max_steps", "sft.mixture"} <= {row["key"] for row in rows}
    shown = slimrl("settings", "algorithm").out
    assert "algorithm.clip_high = 0.2" in shown
    assert "rollout." not in shown


def test_settings_fit_the_terminal(slimrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = slimrl("settings").out.splitlines()
    assert max(map(len, lines)) <= 60
    rows = json.loads(slimrl("settings", "--json").out)
    assert [line.split()[0] for line in lines if line[0] != " "] == [row["key"] for row in rows]
    text = " ".join(" ".join(lines).split())
    assert [row["key"] for row in rows if " ".join(row["meaning"].split()) not in text] == []


SMALL = (
    "steps=2",
    "rollout.problems=4",
    "rollout.group_size=2",
    "rollout.max_new_tokens=12",
    "evaluation.problems=6",
    "evaluation.harder_problems=3",
)


def test_train_eval_sample_export_grade(slimrl, tiny_folder: Path, tmp_path: Path) -> None:
    """The whole line from the shell, on a random model: files, keys, and weights that load as they were."""
    trained = slimrl("train", f"model.path={tiny_folder}", "name=r", *SMALL, "--json")
    assert trained.code == 0, trained.err
    summary = json.loads(trained.out)
    assert {"run", "before", "after", "steps", "tokens_generated", "seconds"} <= set(summary)
    assert {"accuracy", "low", "high", "greedy", "n"} <= set(summary["before"])
    assert summary["before"]["n"] == 6
    assert "everything is in runs/r" in trained.err
    assert re.search(r"^\d+ steps? in \d+s, \d+\.\d\d s each without evaluations$", trained.err, re.MULTILINE)
    run = tmp_path / "runs" / "r"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "run.json", "metrics.jsonl", "rollouts", "evals", "curves.png", "report.html", "final", "lock",
    }  # fmt: skip
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    rollouts = [json.loads(line) for line in (run / "rollouts" / "step-00000001.jsonl").read_text().splitlines()]
    assert len(rollouts) == 8
    assert {"id", "question", "answer", "text", "correct", "reward", "scores", "finish", "tokens"} <= set(rollouts[0])

    evaluated = slimrl("eval", run, "--json", "--out", tmp_path / "e.jsonl")
    assert evaluated.code == 0, evaluated.err
    again = json.loads(evaluated.out)["test"]
    flat = {key: value for key, value in again.items() if key not in ("pass@k", "maj@k")}
    assert flat == pytest.approx(summary["after"]), "a run is evaluated under its own settings"
    assert again["pass@k"].keys() == again["maj@k"].keys() == {"1"}
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 2 * (6 + 3)

    sampled = slimrl("sample", run, "Tom has 3 apples. How many?", "-n", "2")
    assert sampled.code == 0, sampled.err
    assert slimrl("sample", run, "Tom has 3 apples. How many?", "-n", "2").out == sampled.out

    exported = slimrl("export", run, tmp_path / "out")
    assert exported.code == 0, exported.err
    assert slimrl("export", run, tmp_path / "out").code == 2
    assert slimrl("eval", tmp_path / "out", *SMALL[3:], "--json").code == 0

    rows = [
        {"id": r["id"], "answer": r["answer"], "completion": r["text"]} for r in rollouts
    ] + [{"id": "gold", "answer": "7", "completion": "3+4=7\n#### 7"}]  # fmt: skip
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    graded = slimrl("grade", "--task", "arithmetic", tmp_path / "stored.jsonl", "--out", tmp_path / "g.jsonl", "--json")
    assert graded.code == 0, graded.err
    verdicts = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert [v["strict"] for v in verdicts] == [r["correct"] for r in rollouts] + [True]
    assert json.loads(graded.out)["n"] == 9


def test_rows_left_out_are_noted_and_kept(slimrl, files: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    data = [
        "task.name=jsonl",
        f"task.path={files['bad.jsonl']}",
        f"task.test_path={tmp_path}/test.jsonl",
        "task.on_bad_row=skip",
    ]
    (tmp_path / "test.jsonl").write_text('{"question": "What is 3 + 1?", "answer": "4"}\n')
    note = (
        f"2 of 42 rows are left out (a run keeps them in rejected.jsonl): {files['bad.jsonl']}:41: the row has no field "
        f"'answer' (it has: question); add it, or rename the field that holds it; 1 more row is bad ({files['bad.jsonl']}:4)"
    )
    small = [setting for setting in SMALL if "harder" not in setting]
    for verb, name in (("train", "t"), ("sft", "s")):
        more = ["rollout.max_new_tokens=30", "sft.batch_size=2"] if verb == "sft" else []
        kept = [s for s in small if verb == "train" or not s.startswith("rollout")]
        ran = slimrl(verb, f"model.path={tiny_folder}", f"name={name}", *kept, *data, *more)
        assert ran.code == 0, ran.err
        assert note in ran.err
        assert re.search(r"\n\d+ steps? in .*, [\d.]+ s each without evaluations", ran.err)
        rejected = (tmp_path / "runs" / name / "rejected.jsonl").read_text().splitlines()
        assert [set(json.loads(line)) for line in rejected] == [{"where", "reason", "row"}] * 2
        assert json.loads(rejected[0])["row"] == '{"question": "and now?"}'
    evaluated = slimrl("eval", tmp_path / "runs" / "t")
    assert evaluated.code == 0, evaluated.err
    assert note in evaluated.err
    assert note in slimrl("doctor", f"model.path={tiny_folder}", *small, *data, "--json").err


def test_final_loads_with_bitwise_equal_logits(slimrl, tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from slimrl.config.sections import ModelConfig
    from slimrl.model.loading import load_policy

    assert slimrl("train", f"model.path={tiny_folder}", "name=r", *SMALL, "rewards.format=1.0").code == 0
    final = tmp_path / "runs" / "r" / "final"
    ours = load_policy(ModelConfig(path=str(final))).model
    ours.set_attn_implementation("sdpa")
    theirs = AutoModelForCausalLM.from_pretrained(final)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in state.items())


def test_doctor_says_that_no_group_carries_a_signal(slimrl, tiny_folder: Path) -> None:
    result = slimrl("doctor", f"model.path={tiny_folder}", *SMALL, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["signal"] == 0
    assert "carries a signal" in " ".join(report["warnings"])
    assert report["gold_failed"] == 0
    assert report["stop_ids"]
    assert report["first_prompt"]
    assert any("clip" in sentence for sentence in report["inert"])
    assert "none of 16 groups carries a signal" in result.err


def test_a_study_from_the_command_line(slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mistakes and its report; tests/study has the driver."""
    (tmp_path / "mine.yaml").write_text("seeds: 2\narms: {kl: algorithm.kl_coef=0}\n")
    for arguments, code, words in (
        (("study", "run"), 2, "Missing argument 'STUDY"),
        (("study", "plan", "steps=3"), 2, "name a study first"),
        (("study", "run", "mime.yaml"), 2, "mime.yaml: no such settings file; did you mean mine.yaml?"),
        (("study", "run", "mine.yaml", "stepz=3"), 2, "the study's settings: stepz is not a setting"),
        (("study", "report", "mine.yaml"), 3, "runs/mine: no such study"),
        (
            ("study", "plan", "mine.yaml", "model.path=./nowhere", "--slots", "1"),
            3,
            "the probe of base failed: error: ",
        ),
        (("study", "run", "mine.yaml", "--name", "../x"), 2, "cannot name a folder"),
    ):
        result = slimrl(*arguments)
        assert (result.code, result.out) == (code, ""), result.err
        assert words in result.err
        assert "Traceback" not in result.err
    expanded = load_study([str(tmp_path / "mine.yaml")])
    for planned in planned_runs(expanded, tmp_path / "runs" / "mine"):
        write_run(planned, [1, 2 + planned.index])
    result = slimrl("study", "report", "mine.yaml", "--json")
    assert result.code == 0
    assert json.loads(result.out) == json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert "kl: +0.0 points" in result.err
    monkeypatch.setattr(runner, "run_study", lambda *_, **__: planned_runs(expanded, tmp_path)[:1])
    failed = slimrl("study", "run", "mine.yaml", "--quiet")
    assert (failed.code, failed.err) == (
        3, "error: 1 run failed (base-0); correct the cause and run the same command again\n"
    )  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
def test_what_takes_long_to_compile_is_said_before_a_model_is_loaded(
    compiled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    open_display(load_config(TrainConfig, [], [f"rollout.compile={compiled}"]))
    assert ("decode steps are compiled" in capsys.readouterr().err) is compiled


def test_interrupt_ends_with_130(slimrl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimrl.config.files.describe_settings", interrupted)
    assert slimrl("settings").code == 130


@pytest.mark.parametrize("recipe", sorted(p.name for p in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_valid(recipe: str) -> None:
    from slimrl.config.files import load_config
    from slimrl.config.schema import TrainConfig

    needed = ["algorithm.reference=a/teacher"] if recipe == "distillation.yaml" else []
    config = load_config(TrainConfig, [str(ROOT / "recipes" / recipe)], needed)
    chosen = yaml.safe_load((ROOT / "recipes" / recipe).read_text())
    found = config.model_dump()
    for section, values in chosen.items():
        if isinstance(values, dict):
            for key, value in values.items():
                own = found[section][key]
                assert {**own, **value} == own if isinstance(value, dict) else own == value
