"""The policy: a causal language model of transformers, its head and tokenizer, and how they are called.

Sampler and trainer call this one module with the same weights. Of a policy with an adapter only that is trained: the optimizer,
the memory plan, checkpoints and `final/` go through `trainable`, `tensors` and `merged`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrl import thinking
from slimrl.model.adapter_files import WEIGHTS_FILE
from slimrl.model.architecture import LayerAttention, text_decoder
from slimrl.model.attention import AttentionPlan
from slimrl.model.head import Head
from slimrl.model.lora import (
    Lora,
    adapter_parameters,
    adapter_tensors,
    merge,
    merged_tensors,
    rounding_error,
    shared_copy,
    without_adapter,
)
from slimrl.model.packing import Packed
from slimrl.model.quantized import quantized_layers
from slimrl.model.stops import StopTexts

NOTED_ERROR = 0.05
"""Relative error of a merged adapter from which on a note says so."""


@dataclass(frozen=True)
class Policy:
    """The one module that samples and learns, and what belongs to it."""

    model: PreTrainedModel
    tokenizer: Any
    head: Head
    stop_ids: tuple[int, ...]
    """Every id that ends a completion: generation config, tokenizer and chat template together, and special tokens of
    `rollout.stop`."""
    pad_id: int
    """Fills rows; never read, since masks come from lengths."""
    context: int
    """Longest prompt plus completion that the model was made for, in tokens."""
    attention: tuple[LayerAttention, ...] = ()
    """Recorded layer by layer when the model was loaded."""
    form_ids: frozenset[int] = frozenset()
    """Special tokens that are part of the form of an answer, and so of a completion's text."""
    opening: str = ""
    """The mark with which prompts begin the thinking of a completion, where they do: the text of completions begins with it."""
    model_stop_ids: tuple[int, ...] = ()
    """Those of `stop_ids` that the model's files decide, which hold for any settings."""
    stop_texts: StopTexts = field(default_factory=StopTexts)
    """Texts that end a completion and are no part of it."""
    lora: Lora | None = None
    """The adapter that is trained; None where the model's own weights are."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about the files that were loaded, and about the model."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @cached_property
    def trunk(self) -> nn.Module:
        """The module that turns ids into hidden states: the model without its head, and without towers for images or sound."""
        return text_decoder(self.model)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer owns, by name: all that are not frozen, tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def parameters(self) -> int:
        """Number of the model's own weights, tied ones once."""
        saved = sum(layer.saved for _, layer in quantized_layers(self.model))
        adapters = sum(p.numel() for p in adapter_parameters(self.model).values())
        return sum(int(p.numel()) for p in self.model.parameters()) + saved - adapters

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by the names of transformers' or peft's own files: the module's tensors, shared ones once,
        or the adapter's.
        """
        if self.lora is not None:
            return adapter_tensors(self.model)
        whole = self.model.state_dict().items()
        first = {tensor.data_ptr(): name for name, tensor in reversed(whole)}
        return {name: tensor for name, tensor in whole if first[tensor.data_ptr()] == name}

    def merged(self) -> PreTrainedModel:
        """The model as it is saved: its own layers with plain weights, ready for from_pretrained."""
        return self.model if self.lora is None else merge(self.model)

    def merged_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of `merged` by name, a tied one under each of its names, and no more than one that is made at a time."""
        return iter(self.model.state_dict().items()) if self.lora is None else merged_tensors(self.model)

    def rounding_note(self) -> str:
        """A sentence on what the merged weights lose of an adapter by rounding; empty where that is little."""
        error = 0.0 if self.lora is None else rounding_error(self.model)
        if error < NOTED_ERROR:
            return ""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"final/ holds the weights with the adapter, rounded to {dtype}: a relative error of {error:.0%} of what the adapter "
            "changes; adapter/ holds it whole, and is the model that was measured"
        )

    def save(self, folder: Path) -> None:
        """The merged model and the tokenizer, into a new folder."""
        self.merged().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_adapter(self, folder: Path) -> None:
        """The adapter as peft's own files, with the tokenizer, into a new folder."""
        folder.mkdir(parents=True)
        self.save_descriptions(folder)
        save_file({name: t.detach().contiguous() for name, t in self.tensors().items()}, folder / WEIGHTS_FILE)

    def save_descriptions(self, folder: Path) -> None:
        """Everything but weights that makes a folder of them a model, or an adapter, that loads like any other."""
        if self.lora is None:
            self.model.config.save_pretrained(folder)
        else:  # beside a config.json transformers would look for a model
            self.lora.save_config(folder, self.model)
        self.model.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """[N, T] ids and positions -> [N, T, D] hidden states after the final norm."""
        out = self.trunk(input_ids=input_ids, position_ids=position_ids, use_cache=False, plan=plan)
        last: Tensor = out.last_hidden_state
        return last

    def packed_hidden(self, packed: Packed) -> Tensor:
        """[N, D] hidden states of packed tokens."""
        return self.hidden(packed.ids[None], packed.positions[None], packed.plan)[0]

    def begun(self, heard: Sequence[int] = ()) -> str:
        """The mark with which thinking begins before a turn: that of prompts, or the one at the end of what an environment wrote,
        which is `heard` of the turn.
        """
        return thinking.opening(self.tokenizer.decode(list(heard))) if heard else self.opening

    def decode(self, token_ids: Sequence[int], heard: Sequence[int] = ()) -> str:
        """The text of a completion, or of a turn behind what was `heard`: from the mark that began its thinking up to a stop
        token or a stop text, and without special tokens except those of the answer's form.
        """
        ids = list(token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids)
        form = self.form_ids.intersection(ids)
        if form:
            special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            ids = [i for i in ids if i not in special or i in form]
        return self.begun(heard) + self.stop_texts.cut(self.tokenizer.decode(ids, skip_special_tokens=not form))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token by itself; a character that is spread over several of them becomes U+FFFD in each."""
        names = self.tokenizer.convert_ids_to_tokens(list(token_ids))
        texts = self.tokenizer.batch_decode([[i] for i in token_ids])
        # decoders of the SentencePiece kind take the space before a first word for none of the text's
        return [
            f" {text}" if str(name).startswith("\u2581") and not text.startswith(" ") else text
            for name, text in zip(names, texts, strict=True)
        ]

    def read_back(self, token_ids: Sequence[int]) -> str:
        """The text of a completion of which these are the ids: it ends with its first stop token."""
        end = next((n for n, i in enumerate(token_ids) if i in self.stop_ids), len(token_ids))
        return self.decode(token_ids[:end])


def freeze(policy: Policy) -> Policy:
    """The policy as it is now, untouched by what an optimizer does to it: the reference of the KL penalty.

    It shares all weights that are not trained. A new adapter is left out, and of another the factors are copied.
    """
    new = policy.lora is not None and policy.lora.new
    model = without_adapter(policy.model) if new else shared_copy(policy.model)
    model.requires_grad_(False)
    return replace(policy, model=model, head=replace(policy.head, projection=model.get_output_embeddings()))


@dataclass(frozen=True)
class Cost:
    """Counts of one policy; multiply-adds are two operations."""

    body: int
    """Parameters of the layers' matrices."""
    head: int
    """Parameters of the output embedding."""
    weight_bytes: int
    """All parameters, tied ones once."""
    pair_flops: int
    """Operations of one query against one key, over all layers and heads."""
    cache_bytes: int
    """Keys and values of one token, over all layers."""

    def forward(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations of a forward pass: tokens through the layers, targets through the head, query-key pairs."""
        return 2.0 * self.body * tokens + 2.0 * self.head * targets + self.pair_flops * pairs


def cost_of(policy: Policy) -> Cost:
    """The counts of a loaded policy."""
    linear = [module for module in policy.trunk.modules() if isinstance(module, nn.Linear)]
    widths = [layer.key_width + layer.value_width for layer in policy.attention]
    return Cost(
        body=sum(module.in_features * module.out_features for module in linear),
        head=policy.head.weight.numel(),
        weight_bytes=sum(p.nbytes for p in policy.model.parameters())
        + sum(layer.scales.nbytes for _, layer in quantized_layers(policy.model)),
        pair_flops=sum(2 * layer.heads * width for layer, width in zip(policy.attention, widths, strict=True)),
        cache_bytes=sum(layer.kv_heads * width for layer, width in zip(policy.attention, widths, strict=True))
        * policy.model.dtype.itemsize,
    )
