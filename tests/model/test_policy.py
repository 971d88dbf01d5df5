"""The three doors of a policy, on one of which only a low-rank addition is trained and which another module wraps."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from slimrl.learner.critic import Critic
from slimrl.model.policy import Policy, cost_of
from slimrl.preflight.memory import plan_memory
from slimrl.runs.directory import RunDirectory
from slimrl.session.state import model_tensors
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.tiny import NoTokenizer, learner_of, tiny_model, tiny_policy

IDS = torch.arange(3, 20)[None]
RANK = 2


class LowRank(nn.Module):
    """A frozen linear layer with a product of two small matrices added to it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        draws = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(RANK, base.in_features, generator=draws))
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return out


class Wrapper(nn.Module):
    """Wraps a model as adapter libraries do: `base_model` is the whole of it, and what the wrapper lacks is the model's."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *args: Any, **more: Any) -> Any:
        return self.base_model(*args, **more)


class AdaptedPolicy(Policy):
    @property
    def trunk(self) -> nn.Module:
        return self.model.base_model.base_model

    def merged(self) -> PreTrainedModel:
        model = copy.deepcopy(self.model.base_model)
        for layer in model.model.layers:
            adapted = layer.mlp.down_proj
            adapted.base.weight += adapted.b.detach() @ adapted.a.detach()
            layer.mlp.down_proj = adapted.base
        return model


@pytest.fixture
def adapted() -> AdaptedPolicy:
    policy = tiny_policy("llama")
    policy.model.requires_grad_(False)
    for layer in policy.model.model.layers:
        layer.mlp.down_proj = LowRank(layer.mlp.down_proj)
    parts = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return AdaptedPolicy(**{**parts, "model": Wrapper(policy.model)})


def logits(policy: Policy) -> Tensor:
    policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return policy.model(IDS, use_cache=False).logits


def test_a_whole_model_is_trained_and_saved_as_it_is() -> None:
    policy = tiny_policy()
    assert policy.trunk is policy.model.model
    assert policy.trainable.keys() == dict(policy.model.named_parameters()).keys()
    assert policy.merged() is policy.model


def test_an_update_moves_the_addition_and_nothing_else(adapted: AdaptedPolicy) -> None:
    config = settings(optimizer={"learning_rate": 1e-2, "minibatches": 2, "epochs": 2}, algorithm={"kl_coef": 0.1})
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    learner = learner_of(adapted, config)
    metrics = run_update(learner)
    assert metrics["grad_norm"] > 0
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    moved = {name for name, p in adapted.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == adapted.trainable.keys()
    assert {name.rpartition(".")[2] for name in moved} == {"a", "b"}
    assert {name.partition(":")[0] for name in learner.optimizer.tensors()} == moved
    assert model_tensors(adapted).keys() == moved
    assert learner.targets.reference is not None
    assert not torch.equal(logits(learner.targets.reference), logits(adapted))


def test_what_is_saved_is_a_plain_model_with_the_same_logits(adapted: AdaptedPolicy, tmp_path: Path) -> None:
    class Tokenizer(NoTokenizer):
        def save_pretrained(self, folder: Path) -> None:
            """Nothing of it is needed here."""

    with torch.no_grad():
        for layer in adapted.trunk.layers:
            layer.mlp.down_proj.b.normal_(generator=torch.Generator().manual_seed(1))
    object.__setattr__(adapted, "tokenizer", Tokenizer())
    wanted = logits(adapted)
    RunDirectory(tmp_path).save_final(adapted)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert loaded.state_dict().keys() == tiny_model("llama").state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS, use_cache=False).logits, wanted, atol=1e-5, rtol=0)
        assert (tiny_model("llama")(IDS, use_cache=False).logits - wanted).abs().max() > 0.1


def test_plans_and_costs_see_through_the_wrapper(adapted: AdaptedPolicy) -> None:
    added = sum(p.numel() for p in adapted.trainable.values())
    plan = plan_memory(adapted, settings(), longest_prompt=8, rows=16, training=True)
    assert plan.moments == 8 * added
    assert cost_of(adapted).body == cost_of(tiny_policy("llama")).body
    critic = Critic(adapted)
    assert critic.trunk is not adapted.trunk
    assert all(p.requires_grad for p in critic.parameters())
