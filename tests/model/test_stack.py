"""The decode steps of all fused layers in one call are those of the layers one after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from slimrl.kernels.native import has_kernels, lanes
from slimrl.kernels.stack import decode_layers
from slimrl.model import stack
from slimrl.model.layer import separate
from slimrl.model.loading import adopt
from slimrl.model.policy import Policy, freeze
from slimrl.randomness import uniforms
from slimrl.records import Completion
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.probe import _two_steps
from tests.tiny import FUSIBLE, NoTokenizer, tiny_model

pytestmark = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
narrow = [torch.bfloat16] if has_kernels(torch.bfloat16) else []
NEW_TOKENS = 20


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that went through the one call."""
    found: list[int] = []

    def counted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        found.append(len(x))
        return decode_layers(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stack, "decode_layers", counted)
    return found


def policy_of(family: str, dtype: torch.dtype) -> Policy:
    """With biases and norms that are not 0 and 1."""
    model = tiny_model(family)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.1 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    return adopt(model.to(dtype), NoTokenizer(), name=family)


def completions(policy: Policy) -> list[tuple[Completion, ...]]:
    """Rows come and go: there are fewer slots than samples, and prompts of many lengths."""
    rng = np.random.default_rng(0)
    asked = [
        Request(
            tuple(rng.integers(3, 61, size=rng.integers(3, 17)).tolist()),
            uniforms(0, "train", 0, f"p{i}", samples=4, positions=NEW_TOKENS),
        )
        for i in range(6)
    ]
    return RolloutEngine(policy, slots=9).generate(asked, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, *narrow])
@pytest.mark.parametrize("family", FUSIBLE)
def test_layers_in_one_call_draw_what_layers_one_by_one_draw(
    family: str, dtype: torch.dtype, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(family, dtype)
    assert isinstance(policy.trunk, stack.FusedTrunk)
    found = completions(policy)
    assert max(calls) == 9
    monkeypatch.setattr(stack.FusedTrunk, "_is_quick", lambda *_: False)
    steps = len(calls)
    wanted = completions(policy)
    assert len(calls) == steps
    for mine, theirs in zip((c for g in found for c in g), (c for g in wanted for c in g), strict=True):
        assert mine.token_ids == theirs.token_ids
        if dtype == torch.bfloat16:  # there every product is the compiled one
            assert mine.logprobs == theirs.logprobs
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=2e-6)


@pytest.mark.parametrize("how", ["separated", "copied"])
def test_a_trunk_knows_its_own_layers(how: str, calls: list[int]) -> None:
    policy = policy_of("wide llama", torch.float32)
    wanted = completions(policy)
    calls.clear()
    if how == "separated":
        separate([*policy.model.model.layers, policy.model.model.norm])
        assert [[c.token_ids for c in g] for g in completions(policy)] == [[c.token_ids for c in g] for g in wanted]
        assert not calls
    else:
        copied = freeze(policy)
        with torch.no_grad():
            policy.model.model.layers[0].mlp.up_proj.weight.zero_()
        assert completions(copied) == wanted
        assert completions(policy) != wanted
        assert calls


def test_weights_that_are_replaced_between_calls_are_read(calls: list[int]) -> None:
    policy = policy_of("wide llama", torch.float32)
    before = completions(policy)
    projection = policy.model.model.layers[1].self_attn.o_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 0.5)
    assert completions(policy) != before
    assert calls


@pytest.mark.parametrize("change", ["another trunk", "a part of each head"])
def test_other_trunks_are_left_alone(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("wide llama")
    alter: dict[str, Callable[[], object]] = {
        "another trunk": lambda: monkeypatch.setattr(stack, "TRUNKS", ("MistralModel",)),
        "a part of each head": lambda: setattr(model.model.rotary_emb, "inv_freq", torch.ones(8)),
    }
    alter[change]()
    stack.stack(model.model)
    assert not isinstance(model.model, stack.FusedTrunk)


@pytest.mark.parametrize("dtype", [torch.float32, *narrow])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", FUSIBLE)
def test_one_call_gives_the_bits_of_the_layers(
    family: str, threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(family, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, _ = _two_steps(policy, rows=5, recorded=False)
        monkeypatch.setattr(stack.FusedTrunk, "_is_quick", lambda *_: False)
        wanted, _ = _two_steps(policy, rows=5, recorded=False)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, wanted)


def test_a_call_that_gives_something_else_is_found_and_not_used(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of("wide llama", torch.float32)
    wanted = completions(policy)
    right = stack.decode_layers
    monkeypatch.setattr(stack, "decode_layers", lambda *given: right(*given) * 1.01)
    calls.clear()
    assert completions(policy) == wanted
    assert len(calls) == 2, "the two steps of the check"
    assert not isinstance(policy.trunk, stack.FusedTrunk)


def test_layers_of_several_sizes_are_refused() -> None:
    policy = policy_of("wide llama", torch.float32)
    mlp = policy.model.model.layers[1].mlp
    for product in (mlp.gate_proj, mlp.up_proj):
        product.weight, product.bias = torch.nn.Parameter(torch.zeros(128, 64)), torch.nn.Parameter(torch.zeros(128))
    mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 128))
    with pytest.raises(AssertionError, match="differ in size"):
        completions(policy)
