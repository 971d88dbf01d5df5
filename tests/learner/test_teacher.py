"""A teacher is the reference of the KL penalty: on-policy distillation is its exact gradient, and it teaches."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimrl.config.files import load_config
from slimrl.config.places import anchored
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import ModelConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.learner.learner import Learner
from slimrl.model.loading import load_policy
from slimrl.model.teacher import load_teacher
from slimrl.preflight.memory import Call, plan_memory
from slimrl.train import train
from tests.conftest import ROOT
from tests.learner.test_update import batch_of, first_gradient, settings
from tests.quick import quick_runs  # noqa: F401
from tests.tiny import learner_of, microbatcher_of, save_tiny, tiny_policy

DISTILLATION = str(ROOT / "recipes" / "distillation.yaml")


@pytest.mark.parametrize("estimator", ["reverse", "forward"])
def test_distillation_is_the_gradient_of_the_exact_divergence(estimator: str) -> None:
    """Of whole vocabularies, at the tokens that the policy drew, through the plain models."""
    config = settings(
        rewards={"correct": 0.0},
        algorithm={"reference": "t", "kl_coef": 0.7, "kl_estimator": estimator, "aggregation": "token_mean"},
    )
    policy, teacher = tiny_policy("llama"), tiny_policy("llama", seed=1)
    learner = Learner(policy, config, microbatcher_of(config), reward_weights={}, teacher=teacher)
    batch = batch_of(policy, config)
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    assert learner.targets.reference is teacher
    found, _ = first_gradient(learner, batch)
    wanted = exact_gradient(batch.inputs, batch.loss_mask, estimator, config.rollout.temperature)
    torch.testing.assert_close(found, 0.7 * wanted, atol=1e-6, rtol=1e-4)


def exact_gradient(inputs: Tensor, mask: Tensor, estimator: str, temperature: float) -> Tensor:
    """Of the mean over the masked tokens, flat, by autograd of float64 models."""
    policy, teacher = (tiny_policy("llama", seed=seed).model.double() for seed in (0, 1))
    for model in (policy, teacher):
        model.set_attn_implementation("eager")
    p, q = (torch.log_softmax(model(inputs, use_cache=False).logits / temperature, -1) for model in (policy, teacher))
    first, second = (p, q.detach()) if estimator == "reverse" else (q.detach(), p)
    divergence = (first.exp() * (first - second)).sum(-1)
    (divergence * mask).sum().div(mask.sum()).backward()
    return torch.cat([w.grad.flatten() for w in policy.parameters() if w.grad is not None]).float()


def test_without_a_teacher_the_reference_is_the_initial_policy() -> None:
    policy = tiny_policy()
    learner = learner_of(policy, settings(algorithm={"kl_coef": 0.1}))
    assert learner.targets.reference is not None
    assert torch.equal(learner.targets.reference.head.weight, policy.head.weight)
    assert learner_of(policy, settings(algorithm={"kl_coef": 0.0})).targets.reference is None


def test_the_built_in_model_learns_from_a_better_one_without_rewards(tmp_path: Path) -> None:
    small = (f"output={tmp_path}", "evaluation.problems=100", "evaluation.harder_problems=0", "evaluation.greedy=false")
    small = (*small, "rollout.problems=16")
    own = ("name=teacher", "steps=8", "optimizer.learning_rate=5e-4")
    taught = train(load_config(TrainConfig, [], [*small, *own]), Display(quiet=True))
    teacher = tmp_path / "teacher" / "final"
    more = (f"algorithm.reference={teacher}", "name=pupil", "steps=6", "checkpoint.every=2")
    config = load_config(TrainConfig, [DISTILLATION], [*small, *more])
    pupil = train(config, Display(quiet=True))
    assert taught.after["accuracy"] > taught.before["accuracy"] + 0.2
    assert pupil.after["accuracy"] > pupil.before["accuracy"] + 0.2
    rows = [json.loads(line) for line in (tmp_path / "pupil" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kl"] < rows[0]["kl"] / 2
    assert all(row["reward"] == 0 for row in rows)
    shutil.rmtree(teacher)
    with pytest.raises(SettingsError, match=r"^algorithm.reference=.*no such run"):
        train(replace_name(config, "later"), Display(quiet=True))


def replace_name(config: TrainConfig, name: str) -> TrainConfig:
    return config.model_copy(update={"name": name})


@pytest.fixture
def policy(tiny_folder: Path) -> object:
    return load_policy(ModelConfig(path=str(tiny_folder), device="cpu"))


def test_a_teacher_may_be_larger_and_have_outputs_that_stand_for_no_token(tmp_path: Path, policy) -> None:  # type: ignore[no-untyped-def]
    folder = save_tiny(tmp_path / "teacher", ROOT / "slimrl" / "builtin", layers=3, hidden=64, seed=1)
    whole = load_policy(ModelConfig(path=str(folder), device="cpu"))
    model = whole.model
    model.resize_token_embeddings(policy.head.vocabulary + 16)
    model.save_pretrained(folder)
    teacher = load_teacher(str(folder), policy, name="builtin")
    assert teacher.head.vocabulary == policy.head.vocabulary
    assert not any(p.requires_grad for p in teacher.model.parameters())
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wide: nn.Module = load_policy(ModelConfig(path=str(folder), device="cpu")).model.get_output_embeddings()
        torch.testing.assert_close(teacher.head(hidden), wide(hidden)[:, : policy.head.vocabulary])
    plan = plan_memory(policy, settings(), Call(8, 16), training=True, teacher=teacher)
    assert plan.reference == sum(p.numel() * 4 for p in teacher.model.parameters())


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, policy) -> None:  # type: ignore[no-untyped-def]
    folder = save_tiny(tmp_path / "teacher", ROOT / "slimrl" / "builtin")
    words = json.loads((folder / "tokenizer.json").read_text())
    swapped = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)[-2:]
    words["model"]["vocab"] |= {
        swapped[0]: words["model"]["vocab"][swapped[1]],
        swapped[1]: words["model"]["vocab"][swapped[0]],
    }
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(SettingsError, match=r"algorithm.reference=.* has another vocabulary than model.path"):
        load_teacher(str(folder), policy, name="builtin")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        DataError, match=r"^algorithm.reference=.* needs code of its own or pickled weights, which a teacher"
    ):
        load_teacher(str(folder), policy, name="builtin")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"^algorithm.reference="):
        load_teacher(str(folder), policy, name="builtin")


def test_it_needs_a_penalty_and_takes_the_place_of_rewards() -> None:
    with pytest.raises(SettingsError, match=r"algorithm.reference has no effect without algorithm.kl_coef above 0"):
        load_config(TrainConfig, [], ["algorithm.reference=x", "algorithm.kl_coef=0"])
    with pytest.raises(SettingsError, match=r"every reward has weight 0; .*or a teacher \(algorithm.reference\)"):
        load_config(TrainConfig, [DISTILLATION], [])
    assert not load_config(TrainConfig, [DISTILLATION], ["algorithm.reference=x"]).rewards.paid
    found = anchored({"algorithm": {"reference": "../final"}}, Path("runs/conf"))
    assert found["algorithm"]["reference"] == "runs/final"
