"""Loading a policy from a folder or the Hub, and refusing what could not be sampled or trained rightly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from slimrl.config.places import PICKLES, is_address, is_hub_name
from slimrl.config.sections import LoraConfig, ModelConfig
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.kernels import speed_up
from slimrl.machine.determinism import prepare_products
from slimrl.machine.limits import bound_kernel_caches
from slimrl.model.adapter_files import CONFIG_FILE, SavedAdapter, find_adapter
from slimrl.model.architecture import context_of, freeze_towers
from slimrl.model.head import Head
from slimrl.model.lora import Lora, add_adapter, linear_layers, load_adapter
from slimrl.model.policy import Policy
from slimrl.model.precision import usual_dtype
from slimrl.model.probe import fuse_layers, install_hook
from slimrl.model.quantized import check_quantize, packed_note, quantize
from slimrl.model.remote_code import check_code
from slimrl.model.templates import find_template
from slimrl.terms import ADAPTER, BUILT_IN_MODELS, FINAL

SHIPPED = Path(__file__).parent.parent
BUILTIN = SHIPPED / "builtin"


def load_policy(config: ModelConfig, *, seed: int = 0) -> Policy:
    """Load model and tokenizer, install the attention hook and probe it against the model's own forward pass.

    A folder or Hub name may be that of an adapter, which brings its model with it. `seed` decides the weights of `init: random`
    and the first factors of a new adapter, and nothing else.

    Raises SettingsError or DataError, one sentence each, for a missing folder, pickled weights, code of the model's own, a
    model without a stop id, or an architecture whose attention does not pass through the hook.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("model.device=cuda but torch sees no GPU; set model.device=auto or install a CUDA build")
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    prepare_products(device)
    path = resolve(config.path)
    saved = find_adapter(path, source_of(config, path))
    config = _with_packing(config, saved)
    if config.quantize != "none":
        check_quantize(config.quantize, device)
    if saved is None:
        model, tokenizer, notes = _load(config, path, device, seed)
        lora = None
        if config.lora.rank:
            lora = add_adapter(model, config.lora, base=path, revision=config.revision, seed=seed)
    else:
        model, tokenizer, notes, lora = _load_adapted(config, path, device, saved)
    policy = adopt(model.to(device), tokenizer, name=config.path, lora=lora)
    notes += [packed_note(policy.model, policy.parameters)] if config.quantize != "none" else []
    notes += _merged_notes(config.path, Path(path))
    return replace(policy, notes=(*notes, *policy.notes))


def _merged_notes(named: str, folder: Path) -> list[str]:
    """A note on a run whose model is read from final/, not from its adapter, where merged weights are rounded."""
    adapter = folder.with_name(ADAPTER)
    if folder.name != FINAL or Path(named).name == FINAL or not adapter.is_dir():
        return []
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = str(saved.get("dtype") or saved.get("torch_dtype") or "float32")
    return [] if dtype == "float32" else [
        f"model.path={named} is read from {folder}, whose weights have the run's adapter in them, rounded to {dtype}; "
        f"model.path={adapter} is the adapter itself, beside the model that it was trained on"
    ]  # fmt: skip


def _with_packing(config: ModelConfig, saved: SavedAdapter | None) -> ModelConfig:
    """The settings with the packing of the weights that a saved adapter was trained beside; raises SettingsError for another."""
    if saved is None or saved.quantize in (None, config.quantize):
        return config
    if config.quantize != "none":
        raise SettingsError(
            f"model.path={config.path} is an adapter that was trained beside weights in {saved.quantize}, and fits none in "
            f"{config.quantize}; remove model.quantize={config.quantize}"
        )
    return config.model_copy(update={"quantize": saved.quantize})


def check_adapter(config: ModelConfig, saved: SavedAdapter) -> None:
    """Raises SettingsError for settings that a saved adapter does not take."""
    rank, alpha = saved.config.r, saved.config.lora_alpha
    if config.init == "random":
        raise SettingsError(f"model.init=random has no effect on the adapter {config.path}; remove it")
    asked = config.lora  # an adapter's alpha may be any number, that of model.lora is a whole one
    if asked != LoraConfig() and (asked.rank, asked.alpha, asked.targets) != (rank, alpha, "all-linear"):
        raise SettingsError(
            f"model.path={config.path} is an adapter of rank {rank} and alpha {alpha}, which model.lora cannot change; remove "
            "model.lora, or merge the adapter into its model with peft (merge_and_unload, then save_pretrained of the model and "
            "of the tokenizer) and train a new one on that folder"
        )


def _load_adapted(
    config: ModelConfig, path: str, device: torch.device, saved: SavedAdapter
) -> tuple[PreTrainedModel, Any, list[str], Lora]:
    """As `_load`, of the model that a saved adapter belongs to, and the adapter in it."""
    check_adapter(config, saved)
    base = config.model_copy(update={"path": saved.base, "revision": saved.revision})
    model, tokenizer, notes = _load(base, resolve(saved.base), device, 0)
    lora = load_adapter(model, saved)
    if saved.tokenizer:
        source = source_of(config, path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **source)
        except Exception as error:
            raise unusable(config, path, "", error) from error
    notes.append(f"{config.path} is an adapter of {saved.base}, which is loaded with it")
    if not saved.fits(saved.base_weights()):
        notes.append(f"the weights of {saved.base} are not those that {config.path} was trained beside")
    return model, tokenizer, notes, lora


def check_trainable(policy: Policy, config: ModelConfig) -> None:
    """Raises SettingsError for packed weights without an adapter."""
    if config.quantize != "none" and policy.lora is None:
        raise SettingsError(
            f"model.quantize={config.quantize} leaves no weights to train; set model.lora.rank=16, or remove it"
        )


def lora_note(policy: Policy, lora: Lora) -> str:
    """A sentence on the numbers that are trained."""
    trained = sum(p.numel() for p in policy.trainable.values())
    return (
        f"an adapter of rank {lora.rank} (LoRA) is trained, {trained / 1e6:.3g} million numbers beside "
        f"{policy.parameters / 1e6:.3g} million weights that stay as they are"
    )


def _load(config: ModelConfig, path: str, device: torch.device, seed: int) -> tuple[PreTrainedModel, Any, list[str]]:
    """Model, tokenizer, and notes on their files."""
    pickled, source = _pickled(config, path), source_of(config, path)
    try:
        notes = check_code(config, path, source)
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        saved = AutoConfig.from_pretrained(path, **source)
        if (packed := getattr(saved, "quantization_config", None)) is not None:
            raise _packed_already(config, packed)
        if config.dtype != "auto":
            dtype: torch.dtype = getattr(torch, config.dtype)
        else:
            dtype = usual_dtype(device, saved.get_text_config())
            notes += _dtype_notes(device, dtype, saved.dtype if config.init == "pretrained" else None)
        if device.type == "cpu" and dtype != torch.float32:
            bound_kernel_caches()
        if config.init == "random":
            model = _random_model(path, source, dtype, seed)
        else:
            model, more = _saved_model(config, path, source, dtype, pickled)
            notes += more
    except SlimError:
        raise
    except Exception as error:  # transformers raises many kinds for one cause: these files are not a usable model
        raise unusable(config, path, pickled, error) from error
    if not tokenizer("1 a").input_ids:
        raise DataError(f"model.path={config.path} has no usable tokenizer; add its tokenizer.json")
    if config.quantize != "none":
        quantize(model, linear_layers(model), config.quantize, device)
    return model, tokenizer, notes


def source_of(config: ModelConfig, path: str) -> dict[str, Any]:
    """The arguments of every from_pretrained; raises SettingsError for a revision that nothing reads."""
    source: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if not Path(path).is_dir():
        source["revision"] = config.revision
    elif config.revision != "main" and not config.trust_remote_code:
        raise SettingsError(
            f"model.revision={config.revision} has no effect on the local folder {config.path}; remove it"
        )
    return source


def _packed_already(config: ModelConfig, packed: Any) -> DataError:
    """The error for a model whose files hold quantized weights."""
    table = packed if isinstance(packed, dict) else packed.to_dict()
    return DataError(
        f"model.path={config.path} holds quantized weights ({table.get('quant_method', 'of an unknown kind')}), which SlimRL "
        "does not read; give the model that they were made from, with model.quantize=4bit on a GPU"
    )


def _dtype_notes(device: torch.device, dtype: torch.dtype, saved: torch.dtype | None) -> list[str]:
    """Notes on what `model.dtype=auto` chose, where the model's weights are `saved` in a type, by its config.json."""
    if dtype == torch.float32:
        return []
    notes = []
    if device.type == "cpu":
        notes.append("model.dtype=auto is bfloat16, which this processor multiplies faster than float32")
    if saved == torch.float32:
        notes.append(
            "the model's weights are float32, and a run that trains them in bfloat16 saves them so; model.dtype=float32 keeps "
            "them as they are, and is slower"
        )
    return notes


def _random_model(path: str, source: Mapping[str, Any], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    how = {"dtype": dtype, "attn_implementation": "eager", "trust_remote_code": source["trust_remote_code"]}
    with torch.random.fork_rng():  # the only use of torch's generator, which is put back as it was
        torch.random.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, **source), **how)
    return model


def _saved_model(
    config: ModelConfig, path: str, source: Mapping[str, Any], dtype: torch.dtype, pickled: str
) -> tuple[PreTrainedModel, list[str]]:
    """The model with its saved weights, and notes on them; raises DataError for weights that are not in the files."""
    model, info = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation="eager",
        use_safetensors=not config.pickled_weights,
        weights_only=True,  # of a pickle, torch's restricted reader takes tensors and refuses anything that acts
        output_loading_info=True,
        **source,
    )
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise DataError(
            f"model.path={config.path}: {len(missing)} weights are not in the files ({missing[0]}) and would be "
            "random; config.json and the safetensors do not belong together"
        )
    notes = []
    if config.pickled_weights:
        notes.append(f"the weights were unpickled{f' from {pickled}' if pickled else ''}, tensors only")
    if unused:
        notes.append(f"{len(unused)} saved tensors have no place in the model and are unused ({unused[0]})")
    return model, notes


def unusable(config: ModelConfig, path: str, pickled: str, error: Exception) -> DataError:
    """The error for a model that transformers cannot load."""
    if config.pickled_weights and "Weights only load failed" in str(error):
        return DataError(
            f"model.path={config.path}: {pickled or 'the pickle'} holds more than tensors, which could run code, so it is "
            "not loaded; convert it to safetensors where you trust it"
        )
    if (other := re.search(r"configuration class <class '[\w.]*\.(\w+)Config'> for this kind", str(error))) is not None:
        return DataError(
            f"model.path={config.path}: transformers' AutoModelForCausalLM has no model of the kind {other[1]} (it may be "
            "one for images, or continue no text); choose a model for text"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = "" if Path(path).is_dir() else "there is no such folder here, and from the Hub "
    return DataError(f"model.path={config.path}: {where}transformers cannot load it ({first.strip()[:300]})")


def adopt(model: PreTrainedModel, tokenizer: Any, *, name: str, lora: Lora | None = None) -> Policy:
    """A policy from a loaded model: finds its stop ids, installs the attention hook and probes it.

    Raises SettingsError, naming the model, where either fails.
    """
    # Dropout would make the sampler and the trainer two policies, so the module never enters training mode.
    model = model.eval()
    towers = freeze_towers(model)
    speed_up(model)
    text_config = model.config.get_text_config()
    head = Head(model.get_output_embeddings(), float(getattr(text_config, "final_logit_softcapping", None) or 0.0))
    context, note = context_of(text_config)
    notes = [note] if note else []
    if towers:
        notes.append(
            f"{towers / 1e6:.3g} million weights that text does not pass through, as a tower for images, stay as they are"
        )
    ends = tuple(i for i in stop_ids(model, tokenizer) if i < head.vocabulary)
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        head=head,
        stop_ids=ends,
        model_stop_ids=ends,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        context=context,
        lora=lora,
        notes=tuple(notes),
    )
    if not policy.stop_ids:
        raise SettingsError(
            f"model.path={name} has no stop id, so no completion could end; set eos_token_id in its "
            "generation_config.json, or eos_token in its tokenizer_config.json"
        )
    try:
        policy = replace(policy, attention=install_hook(policy))
    except SettingsError as error:
        raise SettingsError(f"model.path={name}: {error}") from error.__cause__
    fuse_layers(policy)
    return policy


def resolve(path: str) -> str:
    """A folder with a model or an adapter, or a name that may be on the Hub; raises SettingsError for any other path."""
    if path in BUILT_IN_MODELS:
        return str(SHIPPED / path.replace("-", "_"))
    if not path:
        raise SettingsError(
            "model.path is empty; give a folder, a Hub name like Qwen/Qwen2.5-0.5B-Instruct, or builtin"
        )
    folder = Path(path).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return str(folder)
    if folder.is_dir() and not (folder / "config.json").is_file() and (folder / FINAL / "config.json").is_file():
        folder = folder / FINAL
    if not folder.is_dir():
        if is_address(path):
            raise SettingsError(
                f"model.path={path} is no place on this machine; slimrl export {path} my-model fetches the model of a run, which "
                "model.path=my-model then names"
            )
        if not is_hub_name(path):
            raise SettingsError(
                f"model.path={path}: no such run and no such folder; give a run, a folder with config.json and *.safetensors, "
                "a Hub name like Qwen/Qwen2.5-0.5B-Instruct, or builtin"
            )
        return path
    if not (folder / "config.json").is_file():
        checkpoints = sorted(folder.glob("checkpoints/step-*"))
        if (folder / "run.json").is_file():
            instead = f"give its newest checkpoint {checkpoints[-1]}" if checkpoints else "choose another one"
            raise SettingsError(
                f"model.path={path}: this run has no model in final/; {instead}, or resume the run and let it end"
            )
        raise SettingsError(f"model.path={path}: no config.json in that folder; is it a saved model?")
    return str(folder)


def _pickled(config: ModelConfig, path: str) -> str:
    """The name of the pickled weights of a local folder, which must be there, and be all there is, where they are wanted."""
    names = sorted(file.name for file in Path(path).iterdir()) if Path(path).is_dir() else []
    pickled = next((name for name in names if name.endswith(PICKLES)), "")
    safe = any(name.endswith(".safetensors") for name in names)
    if config.pickled_weights and (config.init == "random" or safe):
        why = "model.init=random reads no weights" if config.init == "random" else f"{config.path} holds safetensors"
        raise SettingsError(f"model.pickled_weights has no effect, since {why}; remove it")
    if pickled and not safe and not config.pickled_weights:
        raise DataError(
            f"model.path={config.path}: only pickled weights ({pickled}), which can run code when loaded; convert them to "
            "safetensors first, or set model.pickled_weights=true to read tensors from them and nothing else"
        )
    return pickled


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The union of every id that ends a turn (Gemma ends turns with an id that its tokenizer does not call eos)."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(declared if isinstance(declared, list | tuple) else [declared]), tokenizer.eos_token_id}
    return tuple(sorted((ids | template_terminators(tokenizer)) - {None}))


def template_terminators(tokenizer: Any) -> set[int]:
    """The special token that the chat template writes directly after an assistant's text, if there is one."""
    if not tokenizer.chat_template:
        return set()
    try:
        end = find_template(tokenizer, arguments={}, now=datetime.now()).turn_end()
    except SlimError:  # the prompter reports it where the template is used; task.template=plain does without it
        return set()
    return set() if end is None else {end}


def sampling_settings(policy: Policy, *, temperature: float) -> GenerationConfig:
    """The settings with which transformers' `generate` samples as SlimRL does: the whole distribution, the same stop ids.

    Texts that end completions are not among them: `generate` and a pipeline would refuse to run without a further argument.
    Of the settings that came with a model, others, such as a repetition penalty, act on sampling elsewhere and not here.
    """
    before = policy.model.generation_config or GenerationConfig()
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        eos_token_id=list(policy.stop_ids),
        pad_token_id=policy.tokenizer.pad_token_id if before.pad_token_id is None else before.pad_token_id,
        bos_token_id=before.bos_token_id,
    )
