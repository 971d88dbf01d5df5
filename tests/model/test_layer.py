"""A fused layer is the model's own layer, with fewer passes over memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slimrl.kernels import layers, packed
from slimrl.kernels.embedding import sum_in_place
from slimrl.kernels.native import has_kernels, lanes, paused
from slimrl.learner.recompute import checkpointed
from slimrl.model import layer as fused_layer
from slimrl.model.attention import CausalRows
from slimrl.model.families import fusible
from slimrl.model.layer import FusedLayer, FusedNorm, fuse, separate
from slimrl.model.loading import adopt
from slimrl.model.packing import Packed, pack
from slimrl.model.policy import Policy, freeze
from slimrl.model.precision import in_float32
from tests.tiny import FAMILIES, FUSIBLE, NoTokenizer, tiny_model, tiny_policy

pytestmark = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
narrow = pytest.mark.skipif(not has_kernels(torch.bfloat16), reason="the processor does not multiply bfloat16")


def modules_of(policy: Policy) -> list[torch.nn.Module]:
    return [*policy.model.model.layers, policy.model.model.norm]


def is_fused(policy: Policy) -> bool:
    kinds = {isinstance(module, FusedLayer | FusedNorm) for module in modules_of(policy)}
    assert len(kinds) == 1
    return kinds.pop()


def plain(policy: Policy) -> Policy:
    """A copy with the model's own layers."""
    model = copy.deepcopy(policy.model)
    policy = replace(policy, model=model, head=replace(policy.head, projection=model.get_output_embeddings()))
    separate(modules_of(policy))
    return policy


def packed_rows() -> Packed:
    """Two groups; prompts and rows are longer than the windows of the models."""
    ids = torch.arange(5 * 30).view(5, 30) * 7 % 58 + 3
    ids[1:3, :11] = ids[0, :11]
    ids[4, :4] = ids[3, :4]
    lengths, prompts = torch.tensor([30, 12, 17, 25, 5]), torch.tensor([11, 11, 11, 4, 4])
    return pack(ids, lengths, prompts, torch.tensor([0, 0, 0, 1, 1]), device=torch.device("cpu"))


def gradients(policy: Policy, *, recompute: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of `packed_rows`, and gradients of weights under some sum over them."""
    with checkpointed(policy.model, recompute):
        hidden = policy.packed_hidden(packed_rows())
        return hidden.detach(), gradients_of(policy, hidden)


def gradients_of(policy: Policy, hidden: Tensor) -> dict[str, Tensor]:
    policy.model.zero_grad()
    (hidden.float() @ torch.linspace(-0.2, 0.2, hidden.shape[-1])).sin().sum().backward()
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def share(found: Tensor, wanted: Tensor) -> float:
    """Size of the difference as a share of the size."""
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FUSIBLE)
def test_hidden_states_and_gradients_are_the_models_own(family: str, recompute: bool, summed: bool) -> None:
    policy = tiny_policy(family)
    assert is_fused(policy)
    for parameter in policy.model.parameters():  # biases and norms that are not 0 and 1
        with torch.no_grad():
            parameter += 0.1 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    with paused():
        wanted, exact = gradients(plain(policy))
    if summed:
        sum_in_place(policy.model.parameters())
    found, mine = gradients(policy, recompute=recompute)
    assert share(found, wanted) < 1e-5
    assert mine.keys() == exact.keys()
    for name, gradient in exact.items():
        assert share(mine[name], gradient) < 1e-4, name


@narrow
@pytest.mark.parametrize("family", FUSIBLE)
def test_a_narrow_model_is_as_near_to_its_float32_result_as_its_own_layers_are(family: str) -> None:
    """Nearer, since its residual stream is not rounded; the gradient of one small tensor may have bad luck."""
    policy = adopt(tiny_model(family).to(torch.bfloat16), NoTokenizer(), name=family)
    assert is_fused(policy)
    own = plain(policy)
    wide = plain(policy)
    wide.model.float()
    with paused():
        wanted, exact = gradients(wide)
        theirs, own_gradients = gradients(own)
    found, mine = gradients(policy)
    assert found.dtype == torch.bfloat16
    assert share(found, wanted) <= share(theirs, wanted)
    for name, gradient in exact.items():
        assert mine[name].dtype == torch.bfloat16
        assert share(mine[name], gradient) <= 2 * share(own_gradients[name], gradient), name


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=narrow)])
@pytest.mark.parametrize("family", FUSIBLE)
def test_without_gradients_any_plan_will_do(family: str, dtype: torch.dtype) -> None:
    policy = adopt(tiny_model(family).to(dtype), NoTokenizer(), name=family)
    ids, positions = torch.arange(40).view(2, 20) + 3, torch.arange(20).expand(2, -1)
    with torch.no_grad():
        found = policy.hidden(ids, positions, CausalRows())
        wanted = plain(policy).hidden(ids, positions, CausalRows())
        rows = policy.packed_hidden(packed_rows())
    assert share(found, wanted) < (1e-5 if dtype == torch.float32 else 2e-2)
    assert share(rows, policy.packed_hidden(packed_rows())) < (1e-6 if dtype == torch.float32 else 1e-2)


@narrow
def test_a_narrow_model_in_float32_runs_without_the_kernels() -> None:
    policy = adopt(tiny_model("wide llama").to(torch.bfloat16), NoTokenizer(), name="")
    wide = plain(policy)
    wide.model.float()
    with torch.no_grad(), paused():
        wanted = wide.packed_hidden(packed_rows())
    with torch.no_grad(), in_float32(policy.model):
        found = policy.packed_hidden(packed_rows())
    assert found.dtype == torch.float32
    assert share(found, wanted) < 1e-6
    assert policy.packed_hidden(packed_rows()).dtype == torch.bfloat16


@pytest.mark.parametrize("plan", [None, CausalRows()])
def test_without_spans_gradients_are_those_of_the_models_own_layers(plan: CausalRows | None) -> None:
    policy = tiny_policy("wide llama")
    own = plain(policy)
    if plan is None:
        for model in (policy.model, own.model):
            model.set_attn_implementation("sdpa")
    ids, positions = torch.arange(20)[None] + 3, torch.arange(20)[None]
    found, wanted = policy.hidden(ids, positions, plan), own.hidden(ids, positions, plan)  # type: ignore[arg-type]
    assert torch.allclose(found, wanted, atol=1e-5)
    mine, exact = gradients_of(policy, found), gradients_of(own, wanted)
    assert mine.keys() == exact.keys()
    for name, gradient in exact.items():
        assert share(mine[name], gradient) < 1e-4, name


@pytest.mark.parametrize("frozen", ["layernorm", "layers.0", "q_", "k_norm", "bias", "embed", "down_proj.weight"])
@pytest.mark.parametrize("recompute", [False, True])
def test_frozen_weights_get_none_and_others_what_they_got(frozen: str, recompute: bool) -> None:
    policy = tiny_policy("wide qwen3" if "norm" in frozen else "wide llama")
    _, wanted = gradients(policy)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    _, found = gradients(policy, recompute=recompute)
    assert found.keys() == {name for name in wanted if frozen not in name} != wanted.keys()
    for name, gradient in found.items():
        assert share(gradient, wanted[name]) < 1e-5, name


def test_a_graph_is_used_once() -> None:
    """Its backward pass turns what was kept into gradients, in place."""
    policy = tiny_policy("wide llama")
    total = policy.packed_hidden(packed_rows()).sum()
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="used up"):
        total.backward()


@pytest.mark.parametrize("family", FUSIBLE)
def test_what_is_saved_does_not_change(family: str, tmp_path: Path) -> None:
    policy = tiny_policy(family)
    assert is_fused(policy)
    before = tiny_model(family).state_dict()
    after = policy.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    policy.model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is type(policy.model)
    again = adopt(model.eval(), NoTokenizer(), name=family)
    assert torch.equal(again.packed_hidden(packed_rows()), policy.packed_hidden(packed_rows()))


@pytest.mark.parametrize("family", FUSIBLE)
def test_a_copy_is_fused_too(family: str) -> None:
    policy = tiny_policy(family)
    copied = freeze(policy)
    assert is_fused(copied)
    with torch.no_grad():
        assert torch.equal(copied.packed_hidden(packed_rows()), policy.packed_hidden(packed_rows()))
        policy.model.model.norm.weight.zero_()
        assert copied.packed_hidden(packed_rows()).any()


@pytest.mark.parametrize("family", FUSIBLE)
def test_separate_undoes_fuse(family: str) -> None:
    own = tiny_model(family)
    policy = tiny_policy(family)
    before = [(type(module), sorted(vars(module))) for module in (*own.model.layers, own.model.norm)]
    modules = modules_of(policy)
    assert isinstance(modules[0], type(own.model.layers[0]))
    assert not fusible(policy.trunk)  # they are fused already
    separate(modules)
    assert [(type(module), sorted(vars(module))) for module in modules] == before
    assert fusible(policy.trunk) == modules
    fuse(modules, [0, 0])
    assert is_fused(policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_models_are_left_alone(family: str) -> None:
    """Of other families, or of widths that do not fill vectors."""
    if lanes() < 16 and family in ("qwen3", "gemma3"):
        pytest.skip("its widths fill the vectors of this processor")
    assert not is_fused(tiny_policy(family))


@pytest.mark.parametrize(
    "how",
    [
        "activation",
        "a module of its own",
        "float64",
        "a norm in float64",
        "an epsilon of its own",
        "a class of its own",
    ],
)
def test_layers_that_are_not_what_they_are_called_are_left_alone(how: str) -> None:
    model = tiny_model("wide llama")
    if how == "activation":
        model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    elif how == "a module of its own":
        model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    elif how == "float64":
        model.double()
    elif how == "a norm in float64":
        model.model.layers[1].post_attention_layernorm.double()
    elif how == "an epsilon of its own":
        model.model.layers[1].post_attention_layernorm.variance_epsilon = 1e-3
    else:
        model.model.layers[1].__class__ = type("LlamaDecoderLayer", (type(model.model.layers[1]),), {})
    assert not fusible(model.model)


@pytest.mark.parametrize("kernel", ["gate", "add_norm", "rotate", "packed_attention"])
def test_a_kernel_that_is_wrong_is_found_and_not_used(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Tensor, **_: bool) -> object:
        if kernel == "rotate":
            return None
        right = getattr(packed if "packed" in kernel else layers, kernel)(*given)
        if isinstance(right, Tensor):
            return right * 1.01
        return (right[0] * 1.01, right[1]) if kernel == "packed_attention" else (right[0], right[1] * 1.01, right[2])

    ids, positions = torch.arange(20)[None] + 3, torch.arange(20)[None]
    with torch.no_grad():
        wanted = tiny_policy("wide llama").hidden(ids, positions, CausalRows())
    monkeypatch.setattr(fused_layer, kernel, wrong)
    policy = tiny_policy("wide llama")
    assert not is_fused(policy)
    with torch.no_grad():
        torch.testing.assert_close(policy.hidden(ids, positions, CausalRows()), wanted, atol=1e-5, rtol=1e-5)


def test_a_forward_pass_that_fails_leaves_nothing_behind() -> None:
    class Failing(CausalRows):
        def attend(self, layer: int, *given: Tensor, **how: float) -> Tensor:
            if layer == 1:
                raise ValueError("in the middle")
            return super().attend(layer, *given, **how)  # type: ignore[arg-type]

    policy = tiny_policy("wide llama")
    wanted, exact = gradients(policy)
    ids, positions = torch.arange(20)[None] + 3, torch.arange(20)[None]
    with torch.no_grad(), pytest.raises(ValueError, match="in the middle"):
        policy.hidden(ids, positions, Failing())
    found, mine = gradients(policy)
    assert torch.equal(found, wanted)
    assert all(torch.equal(mine[name], exact[name]) for name in exact)
