"""An adapter is what peft makes of it, trained, sampled, saved and taken up again as a whole model is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import LoraConfig, ModelConfig
from slimrl.errors import DataError, SettingsError
from slimrl.kernels.native import has_kernels, lanes, paused
from slimrl.learner.critic import Critic
from slimrl.model.layer import FusedLayer
from slimrl.model.loading import adopt, load_policy
from slimrl.model.lora import adapter_parameters, add_adapter, rounding_error
from slimrl.model.policy import Policy, cost_of, freeze
from slimrl.model.stack import FusedTrunk
from slimrl.model.taught import Taught, note_taught, taught_of
from slimrl.preflight.memory import Call, plan_memory
from slimrl.preflight.prompting import prepare_model
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.directory import RunDirectory
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.model.test_architecture import ACCEPTED, check_log_probabilities, draw, tiny
from tests.model.test_layer import gradients, packed_rows, share
from tests.model.test_stack import completions
from tests.tiny import FAMILIES, FUSIBLE, NoTokenizer, learner_of, read_state, tiny_model, tiny_policy

fused = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")
narrow = [torch.bfloat16] if has_kernels(torch.bfloat16) else []
IDS = torch.arange(3, 20)[None]
ALL = LoraConfig(rank=4, alpha=6)


class Tokenizer(NoTokenizer):
    def save_pretrained(self, folder: Path) -> None:
        """Nothing of it is needed here."""


def adapted(
    family: str = "wide llama", lora: LoraConfig = ALL, *, dtype: torch.dtype = torch.float32, moved: bool = True
) -> Policy:
    """A policy with an adapter that changes what the model gives, if it was `moved`."""
    model = tiny_model(family).to(dtype)
    found = add_adapter(model, lora, base="owner/model", seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, factor in adapter_parameters(model).items():
            if moved and "lora_B" in name:
                factor.copy_(0.1 * torch.randn(factor.shape, generator=draws))
    return adopt(model, Tokenizer(), name=family, lora=found)


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.head(policy.packed_hidden(packed_rows()))


@pytest.mark.parametrize("family", [*FAMILIES, *FUSIBLE])
def test_a_new_adapter_changes_nothing_and_leaves_out_the_head(family: str) -> None:
    policy = adapted(family, moved=False)
    torch.testing.assert_close(logits(policy), logits(tiny_policy(family)), atol=1e-5, rtol=1e-5)
    layers = {name.split(".")[-4] for name in adapter_parameters(policy.model)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert policy.trainable.keys() == adapter_parameters(policy.model).keys()


@fused
@pytest.mark.parametrize("family", FUSIBLE)
def test_fused_layers_compute_what_peft_computes(family: str) -> None:
    policy = adapted(family)
    assert isinstance(policy.trunk, FusedTrunk)
    with paused():
        wanted, exact = gradients(policy)
    found, mine = gradients(policy)
    assert share(found, wanted) < 1e-5
    assert mine.keys() == exact.keys() == policy.trainable.keys()
    for name, gradient in exact.items():
        assert share(mine[name], gradient) < 1e-4, name


@pytest.mark.skipif(not narrow, reason="the processor does not multiply bfloat16")
@pytest.mark.parametrize("family", FUSIBLE)
def test_narrow_adapters_are_as_near_to_the_float32_result_as_pefts(family: str) -> None:
    policy, wide = adapted(family, dtype=torch.bfloat16), adapted(family, dtype=torch.bfloat16)
    wide.model.float()
    with paused():
        wanted, exact = gradients(wide)
        theirs, own = gradients(policy)
    found, mine = gradients(policy)
    assert share(found, wanted) <= share(theirs, wanted)
    errors = [(share(mine[name], gradient), share(own[name], gradient)) for name, gradient in exact.items()]
    ours, pefts = (sum(column) for column in zip(*errors, strict=True))
    assert ours <= pefts  # rows of a factor can share one error, so a single factor may have bad luck
    assert all(one <= 3 * other for one, other in errors)


@fused
@pytest.mark.parametrize("dtype", [torch.float32, *narrow])
@pytest.mark.parametrize("family", FUSIBLE)
def test_the_one_call_of_a_decode_step_draws_what_the_layers_draw(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted(family, dtype=dtype)
    found = completions(policy)
    assert found != completions(tiny_policy(family))
    monkeypatch.setattr(FusedTrunk, "_is_quick", lambda *_: False)
    for mine, theirs in zip((c for g in found for c in g), (c for g in completions(policy) for c in g), strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=0 if dtype == torch.bfloat16 else 2e-6)


@fused
@pytest.mark.parametrize(
    ("lora", "layers", "trunk"),
    [
        (LoraConfig(rank=3), True, True),
        (LoraConfig(rank=4, targets=["q_proj", "down_proj"]), True, True),
        (LoraConfig(rank=4, targets=["v_proj"]), True, True),
    ],
)
def test_any_rank_and_any_layers_are_fused(lora: LoraConfig, layers: bool, trunk: bool) -> None:
    policy = adapted(lora=lora)
    assert isinstance(policy.trunk.layers[0], FusedLayer) is layers
    assert isinstance(policy.trunk, FusedTrunk) is trunk
    with paused():
        wanted = logits(policy)
    torch.testing.assert_close(logits(policy), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not narrow, reason="the processor does not multiply bfloat16")
def test_an_odd_rank_in_bfloat16_is_left_to_peft() -> None:
    policy = adapted(lora=LoraConfig(rank=3), dtype=torch.bfloat16)
    assert not isinstance(policy.trunk.layers[0], FusedLayer)
    assert completions(policy)


@fused
def test_layers_with_adapters_of_their_own_decode_one_by_one() -> None:
    model = tiny_model("wide llama")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])
    peft.inject_adapter_in_model(config, model)
    policy = adopt(model, NoTokenizer(), name="")
    assert isinstance(policy.trunk.layers[1], FusedLayer)
    assert not isinstance(policy.trunk, FusedTrunk)
    assert completions(policy)


WITHOUT = {
    "gpt-2": "GPT2LMHeadModel has no linear layers to put an adapter beside",
    "deepseek v3, latent attention": r"beside model\.layers\.1\.mlp\.experts of DeepseekV3ForCausalLM, .*name the layers of attention",
}


def randomize(model: PreTrainedModel) -> None:
    """Give every factor of an adapter a part in what the model computes."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter_parameters(model).values():
            factor.add_(0.1 * torch.randn(factor.shape, generator=draws).to(factor))


def check_what_is_sampled(policy: Policy) -> None:
    """It has the log-probabilities of peft's layers under the model's own attention, and of the merged model."""
    drawn = draw(RolloutEngine(policy, slots=2))
    merged = policy.merged()
    assert sum(p.numel() for p in merged.parameters()) == policy.parameters
    for one in (policy.model, merged):
        check_log_probabilities(one, drawn, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in WITHOUT])
def test_every_architecture_that_can_be_trained_can_have_an_adapter(name: str) -> None:
    model = tiny(*ACCEPTED[name], torch.float32)
    lora = add_adapter(model, ALL, base="owner/model", seed=0)
    randomize(model)
    check_what_is_sampled(adopt(model, Tokenizer(), name="m", lora=lora))


@pytest.mark.parametrize("name", WITHOUT)
def test_others_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=WITHOUT[name]):
        add_adapter(tiny(*ACCEPTED[name], torch.float32), ALL, base="", seed=0)


def test_an_update_moves_the_factors_and_nothing_else() -> None:
    policy = adapted("llama", moved=False)
    config = settings(optimizer={"learning_rate": 1e-2, "minibatches": 2, "epochs": 2}, algorithm={"kl_coef": 0.1})
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    learner = learner_of(policy, config)
    metrics = run_update(learner)
    assert metrics["grad_norm"] > 0
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["kl"] > 0
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == policy.trainable.keys()
    assert {name.partition(":")[0] for name in read_state(learner.optimizer)} == moved


@pytest.mark.parametrize("new", [True, False])
def test_the_reference_is_the_policy_as_it_was_and_shares_its_weights(new: bool) -> None:
    """A new adapter is left out of it; of one that was loaded the factors are copied."""
    policy = adapted(moved=not new)
    assert policy.lora is not None
    policy = replace(policy, lora=replace(policy.lora, new=new))
    wanted = logits(policy)
    reference = freeze(policy)
    with torch.no_grad():
        for factor in policy.trainable.values():
            factor.add_(0.3)
    torch.testing.assert_close(logits(reference), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(policy), wanted, atol=1e-2)
    own = {p.data_ptr() for p in policy.model.parameters()}
    copied = [name for name, p in reference.model.named_parameters() if p.data_ptr() not in own]
    assert bool(copied) is not new
    assert all("lora" in name for name in copied)
    assert not any(p.requires_grad for p in reference.model.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks a model for it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSIBLE)
def test_what_is_saved_is_a_plain_model_and_an_adapter_for_peft(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of the same function; the merged weights are rounded once."""
    policy = adapted(family, dtype=dtype)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    RunDirectory(tmp_path).save_final(policy)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert merged.state_dict().keys() == tiny_model(family).state_dict().keys()
    for name, layer in (n for n in policy.model.named_modules() if hasattr(n[1], "lora_A")):
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        whole = layer.base_layer.weight.double() + 6 / 4 * b @ a
        torch.testing.assert_close(
            merged.get_submodule(name).weight.double(), whole, atol=1e-6, rtol=2**-8 if dtype != torch.float32 else 1e-6
        )
    theirs = peft.PeftModel.from_pretrained(tiny_model(family).to(dtype), str(tmp_path / "adapter"))
    own = [p for name, p in theirs.named_parameters() if "lora_" in name]
    assert len(own) == len(policy.trainable)
    with torch.no_grad():
        found = theirs.float()(IDS, use_cache=False).logits
        wanted = merged.float()(IDS, use_cache=False).logits
    assert share(wanted, found) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_embeddings_that_are_the_head_stay_so(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    lora = add_adapter(model, ALL, base="owner/model", seed=0)
    policy = adopt(model, Tokenizer(), name="", lora=lora)
    RunDirectory(tmp_path).save_final(policy)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_plans_and_costs_count_the_adapter() -> None:
    policy, plain = adapted(), tiny_policy("wide llama")
    config = settings(algorithm={"kl_coef": 0.1, "baseline": "critic", "scale_rewards": "none"})
    added = sum(p.numel() for p in policy.trainable.values())
    plan = plan_memory(policy, config, Call(8, 16), training=True)
    assert plan.moments == 8 * added
    assert plan.reference == 4 * added
    assert plan.critic == 16 * added
    assert policy.parameters == plain.parameters == plain.model.num_parameters()
    assert cost_of(policy).body == cost_of(plain).body + added


def test_a_critic_learns_factors_of_its_own() -> None:
    policy = adapted()
    critic = Critic(policy)
    own = {p.data_ptr() for p in policy.model.parameters()}
    learned = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert learned == {name for name, p in critic.named_parameters() if p.data_ptr() not in own}
    assert {"head.weight", "head.bias"} < learned
    assert len(learned) == 2 + len(policy.trainable)


def test_the_seed_decides_the_first_factors() -> None:
    def first(seed: int) -> Tensor:
        model = tiny_model("llama")
        add_adapter(model, ALL, base="", seed=seed)
        return torch.cat([p.flatten() for p in adapter_parameters(model).values()])

    state = torch.get_rng_state()
    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_files_name_the_revision_of_a_model_of_the_hub(tiny_folder: Path) -> None:
    for base, revision in (("owner/model", "v2"), (str(tiny_folder), None)):
        lora = add_adapter(tiny_model("llama"), ALL, base=base, revision="v2", seed=0)
        assert (lora.config.base_model_name_or_path, lora.config.revision) == (base, revision)


def test_a_target_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"model.lora.targets: .*'q_prj'.*it has .*q_proj.*did you mean.*q_proj"):
        add_adapter(tiny_model("llama"), LoraConfig(rank=4, targets=["q_prj"]), base="", seed=0)


class TestFolders:
    """Adapters in files."""

    @pytest.fixture
    def folder(self, tiny_folder: Path, tmp_path: Path) -> Path:
        """A saved adapter of the tiny model."""
        policy = load_policy(ModelConfig(path=str(tiny_folder), device="cpu", lora=ALL))
        with torch.no_grad():
            for factor in policy.trainable.values():
                factor.add_(0.05)
        note_taught(policy.model, Taught("boxed", "Think.", plain=True, stop=(";",)))
        policy.save_adapter(tmp_path / "adapter")
        return tmp_path / "adapter"

    def test_a_model_path_may_be_an_adapter(self, folder: Path, tiny_folder: Path) -> None:
        policy = load_policy(ModelConfig(path=str(folder), device="cpu"))
        assert any(f"is an adapter of {tiny_folder.resolve()}" in note for note in policy.notes)
        assert policy.lora is not None
        assert not policy.lora.new
        assert policy.trainable
        assert taught_of(policy.model) == Taught("boxed", "Think.", plain=True, stop=(";",))
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            wanted = theirs(IDS, use_cache=False).logits
            policy.model.set_attn_implementation("sdpa")
            torch.testing.assert_close(policy.model(IDS, use_cache=False).logits, wanted, atol=1e-5, rtol=1e-5)

    def test_it_is_called_trained_where_it_is(self, folder: Path) -> None:
        given = [f"model.path={folder}", "model.device=cpu"]
        trained, measured = (
            prepare_model(load_config(TrainConfig, [], given), training=training)[0].notes for training in (True, False)
        )
        sentence = "an adapter of rank 4 (LoRA) is trained"
        assert any(note.startswith(sentence) for note in trained)
        assert not any("is trained" in note for note in measured)

    def test_its_rank_is_its_own(self, folder: Path) -> None:
        load_policy(ModelConfig(path=str(folder), device="cpu", lora=ALL))
        with pytest.raises(SettingsError, match=r"is an adapter of rank 4 and alpha 6.*remove model.lora"):
            load_policy(ModelConfig(path=str(folder), device="cpu", lora=LoraConfig(rank=8)))
        other = LoraConfig(rank=ALL.rank, alpha=ALL.alpha, targets=["q_proj"])
        with pytest.raises(SettingsError, match=r"remove model.lora"):
            load_policy(ModelConfig(path=str(folder), device="cpu", lora=other))

    @pytest.mark.parametrize("stable", [False, True])
    @pytest.mark.parametrize("alpha", [16.0, 11.3])
    def test_its_alpha_may_be_any_number(self, folder: Path, alpha: float, stable: bool) -> None:
        file = folder / "adapter_config.json"
        change = {"lora_alpha": alpha, "use_rslora": stable}
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        policy = load_policy(ModelConfig(path=str(folder), device="cpu"))
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            wanted = theirs(IDS, use_cache=False).logits
            policy.model.set_attn_implementation("sdpa")
            torch.testing.assert_close(policy.model(IDS, use_cache=False).logits, wanted, atol=1e-5, rtol=1e-5)
        same = LoraConfig(rank=ALL.rank, alpha=16)
        if alpha == 16:
            load_policy(ModelConfig(path=str(folder), device="cpu", lora=same))
        else:
            with pytest.raises(SettingsError, match=r"of rank 4 and alpha 11.3.*merge_and_unload"):
                load_policy(ModelConfig(path=str(folder), device="cpu", lora=same))

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks a model for it
    def test_the_merged_folder_can_have_another_adapter(self, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
        """As the refusal of another rank says."""
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "merged")
        policy = load_policy(ModelConfig(path=str(tmp_path / "merged"), device="cpu", lora=LoraConfig(rank=8)))
        torch.testing.assert_close(
            logits(policy), logits(load_policy(ModelConfig(path=str(folder), device="cpu"))), atol=1e-5, rtol=1e-5
        )

    def test_an_adapter_beside_the_head_is_refused(self, folder: Path) -> None:
        """The head is read by its weight, and would be sampled and trained without it."""
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj", "lm_head"]}))
        with pytest.raises(SettingsError, match=r"an adapter beside lm_head of Qwen2ForCausalLM.*merge"):
            load_policy(ModelConfig(path=str(folder), device="cpu"))

    def test_it_has_a_tokenizer_of_its_own(self, folder: Path, tiny_folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }} and so on")
        assert "and so on" in str(load_policy(ModelConfig(path=str(folder), device="cpu")).tokenizer.chat_template)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).unlink()
        theirs = load_policy(ModelConfig(path=str(tiny_folder), device="cpu")).tokenizer.chat_template
        assert load_policy(ModelConfig(path=str(folder), device="cpu")).tokenizer.chat_template == theirs

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"peft_type": "IA3"}, "of the kind .*IA3"),
            ({"use_dora": True}, "use_dora=True"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
            ({"use_qalora": True}, "use_qalora=True"),
            ({"kasa_config": {"beta": 0.1}}, "kasa_config="),
            ({"velora_config": {"num_groups": 2}}, "velora_config="),
            ({"arrow_config": {"top_k": 2}}, "arrow_config="),
            ({"monteclora_config": {"num_samples": 2}}, "monteclora_config="),
            ({"a_variant_of_a_later_peft": {"beta": 0.1}}, "a_variant_of_a_later_peft="),
            ({"peft_type": "ADALORA", "total_step": 10}, "of the kind .*ADALORA"),
            *(
                ({"init_lora_weights": way, "loftq_config": {"loftq_bits": 4}}, f"init_lora_weights='{way.lower()}'")
                for way in ("pissa", "pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga", "mica")
            ),
            ({"base_model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all, which is not here"),
            ({"base_model_name_or_path": ""}, "an adapter for a model that it does not name, which is not here"),
            ({"r": 8}, "does not fit"),
            ({"lora_alpha": "16"}, "does not fit"),
            ({"target_modules": ["c_attn"]}, "does not fit .*c_attn"),
        ],
    )
    def test_others_are_refused(self, folder: Path, change: dict[str, object], words: str) -> None:
        file = folder / "adapter_config.json"
        given = json.loads(file.read_text()) | change
        if change.get("peft_type") == "IA3":
            given = {key: given[key] for key in ("peft_type", "base_model_name_or_path", "target_modules")}
            given["feedforward_modules"] = []
        file.write_text(json.dumps(given))
        with pytest.raises(DataError, match=words):
            load_policy(ModelConfig(path=str(folder), device="cpu"))

    @pytest.mark.parametrize("way", [True, False, None, "gaussian", "orthogonal", "eva"])
    def test_a_beginning_that_leaves_the_model_as_it_is_does_not_matter(self, folder: Path, way: object) -> None:
        """Nor do settings that choose layers or belong to another setting, or that are empty in another way than peft's."""
        file = folder / "adapter_config.json"
        saved = json.loads(file.read_text())
        harmless = {
            "init_lora_weights": way,
            "lora_dropout": 0.1,
            "exclude_modules": ["vision"],
            "layer_replication": [],
        }
        file.write_text(json.dumps(saved | harmless | {"loftq_config": None, "of_a_later_peft": False}))
        found = load_policy(ModelConfig(path=str(folder), device="cpu"))
        file.write_text(json.dumps(saved))
        torch.testing.assert_close(logits(found), logits(load_policy(ModelConfig(path=str(folder), device="cpu"))))

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "slimrl_taught.json"])
    def test_damaged_files_are_named(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(DataError, match=r"the adapter cannot be read .*restore it"):
            load_policy(ModelConfig(path=str(folder), device="cpu"))

    def test_weights_must_be_there(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(DataError, match=r"no adapter_model.safetensors"):
            load_policy(ModelConfig(path=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora": {"alpha": 8}}, "alpha has no effect without model.lora.rank above 0"),
        ({"lora": {"targets": ["q_proj"]}}, "targets has no effect without"),
        ({"lora": {"rank": 4}, "init": "random"}, "init=random draws weights that model.lora would never train"),
        ({"quantize": "4bit", "init": "random"}, "init=random draws weights that model.quantize would never train"),
    ],
)
def test_settings_that_could_not_act_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig.model_validate({"model": given})


@pytest.mark.parametrize("family", ["wide llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_tensors_are_those_of_the_merged_model(family: str, dtype: torch.dtype) -> None:
    policy = adapted(family, dtype=dtype)
    expected = policy.merged().state_dict()
    found = dict(policy.merged_tensors())
    assert [*found] == [*expected]
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not torch.equal(
        found["model.layers.0.self_attn.q_proj.weight"],
        tiny_model(family).to(dtype).state_dict()["model.layers.0.self_attn.q_proj.weight"],
    )
    whole = tiny_policy(family)
    assert dict(whole.merged_tensors()).keys() == whole.model.state_dict().keys()


@pytest.mark.parametrize(
    ("dtype", "scale", "said"), [("bfloat16", 1e-4, True), ("bfloat16", 1.0, False), ("float32", 1e-4, False)]
)
def test_what_merging_loses_by_rounding_is_told(tiny_folder: Path, dtype: str, scale: float, said: bool) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder), device="cpu", dtype=dtype, lora=ALL))  # type: ignore[arg-type]
    assert policy.rounding_note() == "", "a new adapter changes nothing"
    torch.manual_seed(0)
    with torch.no_grad():
        for factor in policy.trainable.values():
            factor.normal_(std=scale**0.5)
    before = {
        name: tensor.float() for name, tensor in policy.model.state_dict().items() if name.endswith("base_layer.weight")
    }
    after = {name.replace(".base_layer", ""): name for name in before}
    merged = dict(policy.merged_tensors())
    lost = change = 0.0
    for name, own in after.items():
        layer = policy.model.get_submodule(own.removesuffix(".base_layer.weight"))
        b, a = (getattr(layer, f"lora_{kind}")["default"].weight.detach().float() for kind in "BA")
        delta = layer.scaling["default"] * b @ a
        lost += float((merged[name].float() - before[own] - delta).square().sum())
        change += float(delta.square().sum())
    assert rounding_error(policy.model) == pytest.approx((lost / change) ** 0.5, rel=1e-3, abs=1e-4)
    note = policy.rounding_note()
    assert bool(note) is said
    if said:
        assert (
            f"rounded to bfloat16: a relative error of {(lost / change) ** 0.5:.0%} of what the adapter changes" in note
        )
