"""Secrets of the environment are in nothing that a command writes or prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from slimrl.config.mistakes import known_keys
from slimrl.config.schema import TrainConfig
from tests.conftest import ROOT

SECRETS = {
    "HF_TOKEN": "hf_PlantedHuggingFaceTokenAaBbCc",
    "HUGGING_FACE_HUB_TOKEN": "hf_PlantedOlderTokenDdEeFf",
    "WANDB_API_KEY": "planted0wandb1key2a3b4c5d6e7f8a9b0c1d2e3f",
    "AWS_SECRET_ACCESS_KEY": "PlantedAwsSecret/K7MDENG+bPxRfiCY",
    "OPENAI_API_KEY": "sk-planted-openai-GgHhIi",
    "GITHUB_TOKEN": "ghp_PlantedGithubTokenJjKkLl",
}
SMALL = (
    "steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "evaluation.problems=2", "evaluation.harder_problems=0",
    "evaluation.greedy=false",
)  # fmt: skip
RUN_JSON = {
    "chosen", "told", "code", "data", "date", "initial", "numpy", "rewards", "teacher",
    "verb", "memory", "ranks", "status", "started", "ended", "slimrl", "torch", "transformers", "python", "device", "dtype", "threads", "parameters", "summary",
}  # fmt: skip
"""What a run tells of itself and its machine."""


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A run, one that fails, an examination, an evaluation, in one folder; the exit code of each."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "boom.py").write_text("def boom(completions, **_):\n    raise ValueError('no')\n")
    verbs = {
        "train": ["train", f"model.path={tiny_folder}", "name=r", "log.samples_every=1", *SMALL, "--json"],
        "failing": ["train", f"model.path={tiny_folder}", "name=f", "rewards.custom={'boom.py:boom': {low: 0, high: 1}}", *SMALL],
        "misspelt": ["train", f"hf_token={SECRETS['HF_TOKEN']}"],
        "doctor": ["doctor", f"model.path={tiny_folder}", *SMALL, "--json"],
        "eval": ["eval", "runs/r", *SMALL[3:], "--out", "e.jsonl", "--json"],
        "settings": ["settings", "--json"],
    }  # fmt: skip
    # one process for all of them, since most of the time goes into starting one
    code = (
        "import sys, json\nfrom slimrl.cli import main\ncodes = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['slimrl', *arguments]\n"
        "    try:\n        main()\n        codes.append(0)\n"
        "    except SystemExit as stop:\n        codes.append(stop.code or 0)\n"
        "open('codes.json', 'w').write(json.dumps(codes))\n"
    )
    environment = {**os.environ, **SECRETS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(verbs.values()))], cwd=folder, env=environment, capture_output=True, check=True
    )  # fmt: skip
    (folder / "stdout").write_bytes(done.stdout)
    (folder / "stderr").write_bytes(done.stderr)
    return folder, dict(zip(verbs, json.loads((folder / "codes.json").read_text()), strict=True))


def test_the_commands_did_what_they_should(outputs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = outputs
    assert codes == {"train": 0, "failing": 2, "misspelt": 2, "doctor": 0, "eval": 0, "settings": 0}
    assert (folder / "runs" / "r" / "final" / "model.safetensors").is_file()
    assert (folder / "e.jsonl").stat().st_size
    assert b"hf_token is not a setting" in (folder / "stderr").read_bytes()


def test_no_planted_secret_is_in_any_output(outputs: tuple[Path, dict[str, int]]) -> None:
    folder, _ = outputs
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        content = path.read_bytes()
        found = [name for name, value in SECRETS.items() if value.encode() in content or value[8:].encode() in content]
        assert found == [], path


def test_what_is_written_of_settings_and_machine_is_an_allow_list(outputs: tuple[Path, dict[str, int]]) -> None:
    run = outputs[0] / "runs" / "r"
    assert {*json.loads((run / "run.json").read_text())} == RUN_JSON
    written = yaml.safe_load((run / "config.yaml").read_text())
    keys = {
        *written,
        *(f"{key}.{inner}" for key, value in written.items() if isinstance(value, dict) for inner in value),
    }
    assert keys <= {*known_keys(TrainConfig)}
    assert not [
        key for key in known_keys(TrainConfig) if key.rpartition(".")[2] in ("token", "key", "password", "secret")
    ]


def test_a_run_leaves_no_pickle(outputs: tuple[Path, dict[str, int]]) -> None:
    files = [path for path in (outputs[0] / "runs" / "r").rglob("*") if path.is_file()]
    kinds = {".safetensors", ".json", ".jsonl", ".yaml", ".png", ".jinja", ".html", ".npz", ""}
    assert {path.suffix for path in files} <= kinds
    arrays = [path for path in files if path.suffix == ".npz"]
    assert arrays
    for path in arrays:  # zip archives, as torch's of pickles are
        with np.load(path, allow_pickle=False) as found:
            assert all(found[name].dtype != object for name in found.files)
    # how pickles of protocol 2 and later, and torch's archives of them, begin
    assert not [path for path in {*files} - {*arrays} if path.read_bytes().startswith((b"\x80", b"PK"))]
