"""At the door: stop ids, templates, and models whose attention we do not reach."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from slimrl.config.sections import ModelConfig
from slimrl.errors import DataError, SettingsError
from slimrl.model import precision
from slimrl.model.loading import BUILTIN, adopt, load_policy, template_terminators
from slimrl.model.policy import freeze
from slimrl.model.prompts import make_prompter
from slimrl.model.taught import taught_of
from slimrl.rollout.engine import RolloutEngine
from tests.conftest import SHARED
from tests.tiny import NoTokenizer, tiny_model, tiny_policy

GEMMA_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<bos>{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]
SYSTEM = [{"role": "system", "content": "be brief"}, *USER]


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Characters as tokens, with <eos> as eos and a turn that ends in <eot>, as Gemma 3 has it."""
    vocabulary = {chr(i): i for i in range(128)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": ["<turn>", "<eot>"]})
    made.chat_template = template
    return made


def test_the_stop_set_is_the_union_of_three_sources() -> None:
    model = tiny_model("qwen2", vocabulary=200)
    made = tokenizer(GEMMA_LIKE)
    model.generation_config.eos_token_id = [7, 9]
    policy = adopt(model, made, name="gemma-like")
    assert set(policy.stop_ids) == {7, 9, made.eos_token_id, made.convert_tokens_to_ids("<eot>")}


def test_stop_ids_that_cannot_be_drawn_are_no_stop_ids() -> None:
    model = tiny_model("qwen2", vocabulary=61)
    model.generation_config.eos_token_id = 500
    with pytest.raises(SettingsError, match="no stop id"):
        adopt(model, tokenizer(None), name="m")


@pytest.mark.parametrize(("kind", "name"), [("mistral3", "Mistral3"), ("qwen3_vl", "Qwen3VL"), ("t5", "T5")])
def test_a_model_that_transformers_has_for_something_else_alone_is_named(kind: str, name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(BUILTIN, tmp_path / "model")
    AutoConfig.for_model(kind).save_pretrained(folder)
    with pytest.raises(
        DataError, match=f"AutoModelForCausalLM has no model of the kind {name} .*choose a model for text"
    ):
        load_policy(ModelConfig(path=str(folder), device="cpu"))


def test_template_terminator_without_template() -> None:
    assert template_terminators(tokenizer(None)) == set()


def test_chat_template_without_system_role_gets_it_in_the_user_turn() -> None:
    prompter = make_prompter(tokenizer(GEMMA_LIKE), "auto")
    assert not prompter.system_role
    assert prompter.text(SYSTEM) == "<bos><turn>user\nbe brief\n\nhi<eot>\n<turn>model\n"


def test_a_chat_prompt_has_one_bos() -> None:
    made = tokenizer(GEMMA_LIKE)
    ids = make_prompter(made, "chat").ids(USER)
    assert ids.count(made.bos_token_id) == 1


def test_plain_template_is_used_where_there_is_no_chat_template() -> None:
    prompter = make_prompter(tokenizer(None), "auto")
    assert prompter.chat is None
    assert prompter.text(SYSTEM) == "be brief\n\nQuestion: hi\nAnswer:"
    assert prompter.text(USER) == "Question: hi\nAnswer:"


def test_chat_template_demanded_but_absent() -> None:
    with pytest.raises(SettingsError, match="no chat template"):
        make_prompter(tokenizer(None), "chat")


def test_an_architecture_whose_logits_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logit scale that our head does not know of (as some families have) must not train silently."""
    model = tiny_model("llama")
    original = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = original(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(SettingsError, match="more than the output embedding"):
        adopt(model, NoTokenizer(), name="m")


@pytest.mark.parametrize("family", ["lfm2", "bloom", "falcon_mamba"])
def test_models_with_a_state_of_their_own_are_refused(family: str) -> None:
    """Convolutions, ALiBi outside of the interface, state spaces: sampled token by token they would be other models."""
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    if family == "lfm2":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        config = AutoConfig.for_model(family, **sizes, **heads, layer_types=["conv", "full_attention"])
    elif family == "bloom":
        config = AutoConfig.for_model(family, n_head=4, **{**sizes, "n_layer": 2})
    else:
        config = AutoConfig.for_model(family, state_size=4, use_mambapy=False, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config).eval()
        with pytest.raises(SettingsError):
            RolloutEngine(adopt(model, NoTokenizer(), name=family), slots=2)


def edited(source: Path, target: Path, **changes: object) -> ModelConfig:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return ModelConfig(path=str(target), device="cpu")


def test_weights_that_are_not_in_the_files_are_never_random(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would be random"):
        load_policy(edited(tiny_folder, tmp_path / "deeper", num_hidden_layers=3, layer_types=["full_attention"] * 3))
    shallower = load_policy(edited(tiny_folder, tmp_path / "flat", num_hidden_layers=1, layer_types=["full_attention"]))
    assert any("are unused" in note for note in shallower.notes)


def test_a_taught_instruction_must_be_text(tiny_folder: Path, tmp_path: Path) -> None:
    for number, taught in enumerate(
        [5, {"style": "hashes", "instruction": 5}, {"style": "boxed", "instruction": "x"}, None]
    ):
        policy = load_policy(edited(tiny_folder, tmp_path / str(number), slimrl_taught=taught))
        assert taught_of(policy.model).instruction_for("hashes") is None
    right = {"style": "hashes", "instruction": "be brief"}
    policy = load_policy(edited(tiny_folder, tmp_path / "r", slimrl_taught=right))
    assert taught_of(policy.model).instruction_for("hashes") == "be brief"


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}"])
def test_a_template_that_fails_is_named_and_plain_is_a_way_out(template: str) -> None:
    broken = tokenizer(template)
    adopt(tiny_model("qwen2", vocabulary=200), broken, name="m")
    with pytest.raises(DataError, match=r"chat template fails.*set task\.template=plain"):
        make_prompter(broken, "auto").text(USER)
    assert make_prompter(broken, "plain").text(USER) == "Question: hi\nAnswer:"


def test_the_reference_is_a_copy_that_stays() -> None:
    policy = tiny_policy()
    reference = freeze(policy)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    pairs = zip(reference.model.parameters(), tiny_policy().model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert reference.head.projection is not policy.head.projection
    assert not any(p.requires_grad for p in reference.model.parameters())


def test_random_init_differs_from_the_saved_weights_and_needs_none(tiny_folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny_folder, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    first = load_policy(ModelConfig(path=str(bare), init="random", device="cpu"), seed=1)
    again = load_policy(ModelConfig(path=str(bare), init="random", device="cpu"), seed=1)
    other = load_policy(ModelConfig(path=str(bare), init="random", device="cpu"), seed=2)
    weights = [p.model.get_input_embeddings().weight for p in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-instruct", "smollm2-135m-instruct"])
def test_real_tokenizers_render_and_stop(name: str) -> None:
    from transformers import AutoTokenizer

    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip("needs the real tokenizers beside the project (shared/data/tokenizers)")
    made = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name)
    assert {made.convert_tokens_to_ids("<|im_end|>")} == template_terminators(made)
    text = make_prompter(made, "auto").text(SYSTEM)
    assert text == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or SLIMRL_TEST_GPU is not set")
def test_bf16_on_a_gpu_samples_what_it_scores(tiny_folder: Path) -> None:
    policy = load_policy(ModelConfig(path=str(tiny_folder), device="cuda"))
    assert policy.model.dtype == torch.bfloat16
    assert policy.device.type == "cuda"


def test_auto_is_bfloat16_where_it_is_multiplied_and_models_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    wide, narrow = SimpleNamespace(hidden_size=576), SimpleNamespace(hidden_size=128)
    monkeypatch.setattr(precision, "has_kernels", lambda _dtype: True)
    assert precision.usual_dtype(cpu, wide) == torch.bfloat16
    assert precision.usual_dtype(cpu, narrow) == torch.float32
    monkeypatch.setattr(precision, "has_kernels", lambda _dtype: False)
    assert precision.usual_dtype(cpu, wide) == torch.float32
    assert precision.usual_dtype(torch.device("cuda"), narrow) == torch.bfloat16


def test_a_model_is_loaded_in_its_usual_type_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_kernels", lambda _dtype: True)
    config = ModelConfig(path="builtin", device="cpu")
    assert load_policy(config).model.dtype == torch.float32
    monkeypatch.setattr(precision, "WIDE", 1)
    policy = load_policy(config)
    assert policy.model.dtype == torch.bfloat16
    assert any("bfloat16" in note for note in policy.notes)


def test_a_model_that_will_be_saved_narrower_is_told_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the type was chosen for the user, and the weights of the folder are wider than it."""
    monkeypatch.setattr(precision, "has_kernels", lambda _dtype: True)
    monkeypatch.setattr(precision, "WIDE", 1)
    narrow = tmp_path / "narrow"
    load_policy(ModelConfig(path=str(tiny_folder), device="cpu", dtype="bfloat16")).model.save_pretrained(narrow)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(narrow)
    for more, told in (
        ({"path": str(tiny_folder)}, True),
        ({"path": str(narrow)}, False),
        ({"path": str(tiny_folder), "dtype": "bfloat16"}, False),
        ({"path": str(tiny_folder), "init": "random"}, False),
    ):
        policy = load_policy(ModelConfig.model_validate({"device": "cpu", **more}))
        assert policy.model.dtype == torch.bfloat16
        assert any("saves them so" in note for note in policy.notes) is told
