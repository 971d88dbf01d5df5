"""Loading a policy, and refusing at the door what could not be trained rightly."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from slimrl.config.places import PICKLES, is_hub_name
from slimrl.config.sections import ModelConfig
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.kernels.embedding import use_summed_embeddings
from slimrl.kernels.linear import speed_up_linear
from slimrl.machine.limits import bound_kernel_caches, give_back_large_blocks
from slimrl.model.architecture import LayerAttention, context_of, install_hook
from slimrl.model.attention import AttentionPlan
from slimrl.model.head import Head
from slimrl.model.packing import Packed
from slimrl.model.remote_code import check_code
from slimrl.model.templates import find_template

BUILTIN = Path(__file__).parent.parent / "builtin"
TAUGHT = "slimrl_taught"
"""Key of config.json under which `slimrl sft` notes the answer style and the system message that it taught."""
LARGE = 2**28
"""Bytes of weights from which on memory that is returned costs no time worth mentioning."""


@dataclass(frozen=True)
class Policy:
    """The one module that samples and learns, and what belongs to it."""

    model: PreTrainedModel
    tokenizer: Any
    head: Head
    stop_ids: tuple[int, ...]
    """Every id that ends a completion: generation config, tokenizer and chat template together."""
    pad_id: int
    """Fills rows; never read, since masks come from lengths."""
    context: int
    """Longest prompt plus completion the model was made for, in tokens."""
    attention: tuple[LayerAttention, ...] = ()
    """What each layer hands to attention, as seen when the model was loaded."""
    form_ids: frozenset[int] = frozenset()
    """Special tokens that are part of the form of an answer, and so of a completion's text."""
    notes: tuple[str, ...] = ()
    """What a user should know about the files that were loaded, and about the model."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """[N, T] ids and positions -> [N, T, D] hidden states after the final norm."""
        out = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, plan=plan)
        last: Tensor = out.last_hidden_state
        return last

    def packed_hidden(self, packed: Packed) -> Tensor:
        """[N, D] hidden states of packed tokens."""
        return self.hidden(packed.ids[None], packed.positions[None], packed.plan)[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion: without the stop token, and without special tokens except those of the answer's form."""
        ids = list(token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids)
        form = self.form_ids.intersection(ids)
        if form:
            special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            ids = [i for i in ids if i not in special or i in form]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=not form)
        return text

    def read_back(self, token_ids: Sequence[int]) -> str:
        """The text of a completion of which these are the ids: it ends with its first stop token."""
        end = next((n for n, i in enumerate(token_ids) if i in self.stop_ids), len(token_ids))
        return self.decode(token_ids[:end])


def load_policy(config: ModelConfig, *, seed: int = 0) -> Policy:
    """Load model and tokenizer, install the attention hook and probe it against the model's own forward pass.

    `seed` decides the weights of `init: random` and nothing else.

    Raises SettingsError or DataError, one sentence each, for a missing folder, pickled weights, code of the model's own, a
    model without a stop id, or an architecture whose attention does not pass through the hook.
    """
    path = resolve(config.path)
    pickled = _pickled(config, path)
    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    if device.type == "cpu" and dtype != torch.float32:
        bound_kernel_caches()
    code = {"trust_remote_code": config.trust_remote_code}
    hub: dict[str, Any] = dict(code)
    if not Path(path).is_dir():
        hub["revision"] = config.revision
    elif config.revision != "main" and not config.trust_remote_code:
        raise SettingsError(
            f"model.revision={config.revision} has no effect on the local folder {config.path}; remove it"
        )
    notes: list[str] = []
    try:
        notes += check_code(config, path, hub)
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
        if config.init == "random":
            with torch.random.fork_rng():  # the only use of torch's generator, and it is put back as it was
                torch.random.manual_seed(seed)
                shape = AutoConfig.from_pretrained(path, **hub)
                model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="eager", **code)
            missing: set[str] = set()
        else:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=not config.pickled_weights,
                weights_only=True,  # of a pickle, torch's restricted reader takes tensors and refuses anything that acts
                output_loading_info=True,
                **hub,
            )
            if config.pickled_weights:
                notes.append(f"the weights were unpickled{f' from {pickled}' if pickled else ''}, tensors only")
            missing = set(info["missing_keys"])
            if info["unexpected_keys"]:
                first = sorted(info["unexpected_keys"])[0]
                notes.append(
                    f"{len(info['unexpected_keys'])} saved tensors have no place in the model and are unused ({first})"
                )
    except SlimError:
        raise
    except Exception as error:  # transformers raises many kinds for one cause: these files are not a usable model
        if config.pickled_weights and "Weights only load failed" in str(error):
            raise DataError(
                f"model.path={config.path}: {pickled or 'the pickle'} holds more than tensors, which could run code, so it is "
                "not loaded; convert it to safetensors where you trust it"
            ) from None
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        where = "" if Path(path).is_dir() else "there is no such folder here, and from the Hub "
        raise DataError(
            f"model.path={config.path}: {where}transformers cannot load it ({first.strip()[:300]})"
        ) from error
    if missing:
        raise DataError(
            f"model.path={config.path}: {len(missing)} weights are not in the files ({sorted(missing)[0]}) and would be "
            "random; config.json and the safetensors do not belong together"
        )
    if not tokenizer("1 a").input_ids:
        raise DataError(f"model.path={config.path} has no usable tokenizer; add its tokenizer.json")
    if device.type == "cpu" and model.num_parameters() * model.dtype.itemsize >= LARGE:
        give_back_large_blocks()
    policy = adopt(model.to(device), tokenizer, name=config.path)
    return replace(policy, notes=(*notes, *policy.notes))


def adopt(model: PreTrainedModel, tokenizer: Any, *, name: str) -> Policy:
    """A policy from a loaded model: finds its stop ids, installs the attention hook and probes it.

    Raises SettingsError, naming the model, where either fails.
    """
    # Dropout would make the sampler and the trainer two policies, so the module never enters training mode.
    model = model.eval()
    speed_up_linear(model)
    use_summed_embeddings(model)
    text_config = model.config.get_text_config()
    head = Head(model.get_output_embeddings(), float(getattr(text_config, "final_logit_softcapping", None) or 0.0))
    context, note = context_of(text_config)
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        head=head,
        stop_ids=tuple(i for i in stop_ids(model, tokenizer) if i < head.vocabulary),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        context=context,
        notes=(note,) if note else (),
    )
    if not policy.stop_ids:
        raise SettingsError(
            f"model.path={name} has no stop id, so no completion could end; set eos_token_id in its "
            "generation_config.json, or eos_token in its tokenizer_config.json"
        )
    try:
        return replace(policy, attention=install_hook(model, head, policy.hidden, context))
    except SettingsError as error:
        raise SettingsError(f"model.path={name}: {error}") from error.__cause__


def freeze(policy: Policy) -> Policy:
    """A copy that no optimizer touches: the reference of the KL penalty."""
    model = copy.deepcopy(policy.model).requires_grad_(False)
    return replace(policy, model=model, head=replace(policy.head, projection=model.get_output_embeddings()))


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of the parameters' bytes, names and types: the same for models that are equal to the last bit."""
    return digest(dict(model.named_parameters()))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' bytes, names and types."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return found.hexdigest()


def resolve(path: str) -> str:
    """A folder or Hub name that exists as far as can be told from here; raises SettingsError."""
    if path == "builtin":
        return str(BUILTIN)
    if not path:
        raise SettingsError(
            "model.path is empty; give a folder, a Hub name like Qwen/Qwen2.5-0.5B-Instruct, or builtin"
        )
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file() and (folder / "final" / "config.json").is_file():
        folder = folder / "final"
    if not folder.is_dir():
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
                f"model.path={path}: this run has no model in final/; {instead}, or finish the run with --resume"
            )
        raise SettingsError(f"model.path={path}: no config.json in that folder; is it a saved model?")
    return str(folder)


def _pickled(config: ModelConfig, path: str) -> str:
    """The name of the pickled weights of a local folder, which must be there, and be all there is, where they are wanted."""
    names = sorted(file.name for file in Path(path).iterdir()) if Path(path).is_dir() else []
    pickled = next((name for name in names if name.endswith(PICKLES)), "")
    safe = any(name.endswith(".safetensors") for name in names)
    if config.pickled_weights and (config.init == "random" or safe):
        instead = (
            "model.init=random reads no weights" if config.init == "random" else f"{config.path} holds safetensors"
        )
        raise SettingsError(f"model.pickled_weights has no effect, since {instead}; remove it")
    if pickled and not safe and not config.pickled_weights:
        raise DataError(
            f"model.path={config.path}: only pickled weights ({pickled}), which can run code when loaded; convert them to "
            "safetensors first, or set model.pickled_weights=true to read tensors from them and nothing else"
        )
    return pickled


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The union of every id that ends a turn (Gemma ends turns with an id that its tokenizer does not call eos)."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    ids = {*([] if declared is None else [declared] if isinstance(declared, int) else declared)}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    ids |= template_terminators(tokenizer)
    return tuple(sorted(ids))


def template_terminators(tokenizer: Any) -> set[int]:
    """The special token that the chat template writes directly after an assistant's text, if there is one."""
    if not tokenizer.chat_template:
        return set()
    try:
        end = find_template(tokenizer, arguments={}, now=datetime.now()).turn_end()
    except SlimError:  # said by the prompter where the template is used; task.template=plain does without it
        return set()
    return set() if end is None else {end}


def sampling_settings(policy: Policy, *, temperature: float) -> GenerationConfig:
    """What `generate` must be told to sample as SlimRL does: the whole distribution, and the same stop ids.

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


def taught_instruction(policy: Policy, style: str) -> str | None:
    """The system message with which `slimrl sft` taught this answer style, if it did."""
    taught = getattr(policy.model.config, TAUGHT, None)
    if not isinstance(taught, dict) or taught.get("style") != style:
        return None
    message = taught.get("instruction")
    return message if isinstance(message, str) else None


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("model.device=cuda but torch sees no GPU; set model.device=auto or install a CUDA build")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
