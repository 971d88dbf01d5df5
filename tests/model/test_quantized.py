"""Packed weights are those of a plain model that is a little different, in all that is computed with them.

bitsandbytes packs and widens on a CPU too, so that everything but the way to a GPU is held here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import LoraConfig, ModelConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.model import loading, quantized
from slimrl.model.loading import BUILTIN, adopt, load_policy
from slimrl.model.lora import add_adapter, linear_layers
from slimrl.model.policy import Policy, cost_of, freeze
from slimrl.model.precision import in_float32
from slimrl.model.quantized import Bits, QuantizedLinear, full_weight, quantize, quantized_layers
from slimrl.preflight.memory import Call, plan_memory
from slimrl.runs.directory import RunDirectory
from slimrl.train import train
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.model.test_architecture import ACCEPTED, tiny
from tests.model.test_families import model_of
from tests.model.test_layer import share
from tests.model.test_lora import WITHOUT, Tokenizer, check_what_is_sampled, logits, randomize
from tests.tiny import learner_of, tiny_model

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
BITS: tuple[Bits, ...] = ("4bit", "8bit")
packed = pytest.mark.parametrize("bits", BITS)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU."""
    monkeypatch.setattr(loading, "check_quantize", lambda *_: None)


def policy_of(family: str, bits: Bits, dtype: torch.dtype = torch.float32) -> Policy:
    model = tiny_model(family).to(dtype)
    quantize(model, linear_layers(model), bits, CPU)
    lora = add_adapter(model, LoraConfig(rank=4, alpha=6), base="owner/model", seed=0)
    randomize(model)
    return adopt(model, Tokenizer(), name=family, lora=lora)


@packed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradient_are_those_of_the_widened_weight(bits: Bits, dtype: torch.dtype, bias: bool) -> None:
    layer = nn.Linear(96, 64, bias=bias, dtype=dtype)
    own = QuantizedLinear(layer, bits, CPU)
    weight = full_weight(own)
    assert weight.dtype == dtype
    assert not any(p.requires_grad for p in own.parameters())
    x = torch.randn(2, 5, 96, dtype=dtype)
    given, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    slope = torch.randn(2, 5, 64, dtype=dtype)
    out, wanted = own(given), linear(theirs, weight, layer.bias)
    assert torch.equal(out, wanted)
    out.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(given.grad, theirs.grad)
    assert torch.equal(own(x), wanted), "without gradient"


def test_what_rounding_costs() -> None:
    """Of 8 bits half a step of the row's largest number, and float16 before it; of 4 about a tenth of the weights' spread."""
    layer = nn.Linear(256, 128).requires_grad_(False)
    nn.init.normal_(layer.weight)
    gaps = {bits: full_weight(QuantizedLinear(layer, bits, CPU)) - layer.weight for bits in BITS}
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert bool((gaps["8bit"].abs() <= (0.5 + 127 * 2**-11) * step).all())
    assert 0.05 < float(gaps["4bit"].std() / layer.weight.std()) < 0.12


@packed
@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in WITHOUT])
def test_every_architecture_that_can_have_an_adapter_can_be_packed(name: str, bits: Bits) -> None:
    model = tiny(*ACCEPTED[name], torch.float32)
    quantize(model, linear_layers(model), bits, CPU)
    lora = add_adapter(model, LoraConfig(rank=4, alpha=6), base="owner/model", seed=0)
    randomize(model)
    check_what_is_sampled(adopt(model, Tokenizer(), name="m", lora=lora))


@packed
def test_of_a_model_for_images_the_decoder_alone_is_packed(bits: Bits) -> None:
    model = model_of("Gemma 3 4B", around="gemma3")
    quantize(model, linear_layers(model), bits, CPU)
    lora = add_adapter(model, LoraConfig(rank=4, alpha=6), base="owner/model", seed=0)
    randomize(model)
    policy = adopt(model, Tokenizer(), name="m", lora=lora)
    assert all("language_model" in name for name, _ in quantized_layers(model))
    check_what_is_sampled(policy)


@packed
def test_probes_in_float32_widen_packed_weights_too(bits: Bits) -> None:
    """To float32; the merged weights are bfloat16."""
    policy = policy_of("qwen2", bits, torch.bfloat16)
    plain = policy.merged()
    plain.set_attn_implementation("eager")
    merged = adopt(plain, Tokenizer(), name="")
    with in_float32(policy.model):
        found = logits(policy)
    with in_float32(merged.model):
        wanted = logits(merged)
    assert share(found, wanted) < 2e-2


@packed
def test_an_update_moves_the_factors_and_no_packed_weight(bits: Bits) -> None:
    policy = policy_of("qwen2", bits)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    run_update(learner_of(policy, settings()))
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == policy.trainable.keys()


@packed
def test_the_reference_shares_what_is_packed(bits: Bits) -> None:
    policy = policy_of("qwen2", bits)
    reference = freeze(policy)
    shared = dict(quantized_layers(policy.model))
    assert len(shared) == 14
    for (_, own), (_, theirs) in zip(shared.items(), quantized_layers(reference.model), strict=True):
        assert own.weight is theirs.weight
        assert own.scales is theirs.scales
    assert not torch.equal(logits(reference), logits(policy)), "the new adapter is left out"


@packed
def test_adapters_on_a_few_layers_leave_the_others_packed_until_they_are_saved(bits: Bits, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    quantize(model, linear_layers(model), bits, CPU)
    lora = add_adapter(model, LoraConfig(rank=4, targets=["q_proj"]), base="owner/model", seed=0)
    randomize(model)
    policy = adopt(model, Tokenizer(), name="", lora=lora)
    RunDirectory(tmp_path).save_final(policy)
    assert "quantization_config" not in json.loads((tmp_path / "final" / "config.json").read_text())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    assert saved.state_dict().keys() == tiny_model("qwen2").state_dict().keys()
    assert len(dict(quantized_layers(policy.model))) == 14, "and the policy goes on"
    ids = torch.arange(3, 20)[None]
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(
            saved(ids, use_cache=False).logits, policy.model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4
        )


def test_plans_count_packed_bytes_and_costs_whole_weights() -> None:
    plain = adopt(tiny_model("wide qwen2"), Tokenizer(), name="")
    for bits, part in (("4bit", 1 / 8), ("8bit", 1 / 4)):
        policy = policy_of("wide qwen2", bits)  # type: ignore[arg-type]
        factors = sum(p.numel() for p in policy.trainable.values())
        body = sum(layer.in_features * layer.out_features for _, layer in quantized_layers(policy.model))
        assert policy.parameters == plain.parameters
        assert cost_of(policy).body == cost_of(plain).body + factors
        scales = sum(layer.scales.nbytes for _, layer in quantized_layers(policy.model))
        assert 0 < scales < 0.05 * 4 * body
        assert cost_of(policy).weight_bytes == cost_of(plain).weight_bytes + 4 * factors + scales - 4 * body * (
            1 - part
        )
        assert plan_memory(policy, settings(), Call(8, 16), training=True).widened >= 4 * 64 * 96
        assert plan_memory(policy, settings(), Call(8, 16), training=True).moments == 8 * factors


@pytest.fixture
def trained(bits: Bits, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run of one step, as on a machine with a GPU."""
    request.getfixturevalue("anywhere")
    short = [
        f"output={tmp_path}", "name=a", "steps=1", "rollout.problems=4", "evaluation.problems=4", "model.lora.rank=4",
        "evaluation.harder_problems=0", "algorithm.kl_coef=0.1", f"model.quantize={bits}",
    ]  # fmt: skip
    assert train(load_config(TrainConfig, [], short), Display(quiet=True)).steps == 1
    return tmp_path / "a"


@packed
def test_a_run_learns_and_its_result_is_a_plain_model(trained: Path, bits: Bits) -> None:
    """The adapter of it is loaded with weights that are packed as they were."""
    merged, own = load_policy(ModelConfig(path=str(trained))), load_policy(ModelConfig())
    assert merged.lora is None
    assert merged.parameters == own.parameters
    again = load_policy(ModelConfig(path=str(trained / "adapter")))
    assert again.lora is not None
    assert len(dict(quantized_layers(again.model))) == 28
    assert any(f"28 linear layers, are held in {bits[0]} bits" in note for note in again.notes)
    gaps = [(logits(merged) - logits(one)).abs().max() for one in (again, own)]
    assert gaps[0] < 1e-3 < gaps[1]


@pytest.mark.parametrize("bits", ["4bit"])
def test_an_adapter_fits_no_other_packing(trained: Path) -> None:
    adapter = trained / "adapter"
    with pytest.raises(SettingsError, match=r"trained beside weights in 4bit, .*remove model\.quantize=8bit"):
        load_policy(ModelConfig(path=str(adapter), quantize="8bit"))
    (adapter / "slimrl_quantized.json").write_text('{"quantize": "2bit"}')
    with pytest.raises(DataError, match=r"slimrl_quantized\.json: it names no packing of weights"):
        load_policy(ModelConfig(path=str(adapter)))


def test_it_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SettingsError, match=r"model\.quantize=4bit needs a GPU, and this run is on the CPU; remove it"):
        load_policy(ModelConfig(quantize="4bit"))


def test_it_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match=r"needs bitsandbytes; run pip install 'slimrl\[quantize\]'"):
        quantized.check_quantize("8bit", torch.device("cuda"))


@pytest.mark.usefixtures("anywhere")
def test_packed_weights_alone_cannot_be_trained(tmp_path: Path) -> None:
    config = load_config(TrainConfig, [], [f"output={tmp_path}", "name=a", "model.quantize=4bit"])
    with pytest.raises(SettingsError, match=r"leaves no weights to train; set model\.lora\.rank=16"):
        train(config, Display(quiet=True))


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_files_that_are_packed_already_are_refused(method: str, tmp_path: Path) -> None:
    for file in BUILTIN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    packing = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))
    with pytest.raises(
        DataError, match=rf"holds quantized weights \({method}\), .* with model\.quantize=4bit on a GPU"
    ):
        load_policy(ModelConfig(path=str(tmp_path)))


def test_a_model_without_linear_layers_is_not_packed() -> None:
    model = tiny(*ACCEPTED["gpt-2"], torch.float32)
    with pytest.raises(SettingsError, match="no effect on GPT2LMHeadModel, which has no linear layers to pack"):
        quantize(model, linear_layers(model), "4bit", CPU)


def test_what_bitsandbytes_cannot_do_is_told_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no library for this GPU\nmore")

    monkeypatch.setattr(quantized, "_packed", broken)
    model = tiny_model("qwen2")
    with pytest.raises(
        SettingsError, match=r"bitsandbytes cannot pack the weights \(no library for this GPU\); install one"
    ):
        quantize(model, linear_layers(model), "4bit", CPU)
