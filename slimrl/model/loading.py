"""Loading a policy, and refusing at the door what could not be trained rightly."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from slimrl.config import ModelConfig
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.machine import bound_kernel_caches, give_back_large_blocks
from slimrl.model.attention import HOOK, AttentionPlan, CausalRows
from slimrl.model.linear import speed_up_linear
from slimrl.model.logprobs import Head
from slimrl.model.packing import Packed
from slimrl.model.remote_code import check_code
from slimrl.model.tables import use_summed_embeddings
from slimrl.places import PICKLES, is_hub_name

BUILTIN = Path(__file__).parent.parent / "builtin"
TAUGHT = "slimrl_taught"
"""Key of config.json under which `slimrl sft` notes the answer style and the system message that it taught."""
LARGE = 2**28
"""Bytes of weights from which on memory that is returned costs no time worth mentioning."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}
"""Largest difference that two ways of computing the same logits may show, as a share of the largest logit."""


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
    notes: tuple[str, ...] = ()
    """What a user should know about the files that were loaded."""

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
        """The text of a completion, without the stop token."""
        ids = token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


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
    return replace(adopt(model.to(device), tokenizer, name=config.path), notes=tuple(notes))


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
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        head=head,
        stop_ids=tuple(i for i in stop_ids(model, tokenizer) if i < head.vocabulary),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        context=int(getattr(text_config, "max_position_embeddings", 2**31)),
    )
    if not policy.stop_ids:
        raise SettingsError(
            f"model.path={name} has no stop id, so no completion could end; set eos_token_id in its "
            "generation_config.json, or eos_token in its tokenizer_config.json"
        )
    _install_hook(policy, name)
    return policy


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
    marker = "slimrl-turn-end"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # said by the prompter where the template is used; task.template=plain does without it
        return set()
    after = tokenizer(rendered.rpartition(marker)[2], add_special_tokens=False).input_ids
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(after[:1]) & (added | set(tokenizer.all_special_ids))


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


@torch.no_grad()
def _install_hook(policy: Policy, path: str) -> None:
    """Switch to our attention and demand the logits that the model's own forward pass gives."""
    model = policy.model
    length = min(12, policy.context)
    ids = torch.arange(length, device=policy.device)[None] * 7 % model.config.get_text_config().vocab_size
    own = model(input_ids=ids).logits.float()
    model.set_attn_implementation(HOOK)
    try:
        ours = policy.head(policy.hidden(ids, torch.arange(length, device=policy.device)[None], CausalRows()))
    except TypeError as error:
        raise SettingsError(
            f"model.path={path}: {type(model).__name__} does not pass attention through transformers' interface; "
            "SlimRL trains Qwen2, Qwen3, Llama, Gemma 3, SmolLM2 and others that do"
        ) from error
    gap = ((ours - own).abs().max() / own.abs().max().clamp(min=1e-6)).item()
    if not gap <= TOLERANCE[model.dtype]:
        raise SettingsError(
            f"model.path={path}: {type(model).__name__} gives other logits through SlimRL's attention (off by {gap:.1e} "
            "of the largest); this architecture is not supported"
        )
