"""Frozen weights in 4 or 8 bits, for adapters beside them (QLoRA, arXiv:2305.14314), through bitsandbytes.

4 bits are NormalFloats in blocks of 64, whose scales are quantized once more; 8 bits are integers with one scale a row. A weight
is widened for every product and forgotten after it, forward and backward, so sampler and trainer compute what a model with the
widened weights would.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slimrl.errors import SettingsError

Bits = Literal["4bit", "8bit"]


class Scales(NamedTuple):
    """All that a packed weight needs to be widened."""

    bits: Bits
    state: Any
    """bitsandbytes' QuantState for 4 bits; the largest absolute value of every row, float32 [outputs], for 8."""
    dtype: torch.dtype
    """Of the widened weight."""

    @property
    def nbytes(self) -> int:
        """Bytes of the scales."""
        if self.bits == "8bit":
            return int(self.state.nbytes)
        nested = self.state.state2.absmax.nbytes if self.state.nested else 0
        return int(self.state.absmax.nbytes + nested)


class QuantizedLinear(nn.Linear):
    """x [..., inputs] -> x W^T + bias, where W is held packed and does not learn."""

    scales: Scales

    def __init__(self, layer: nn.Linear, bits: Bits, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.detach().to(device)
        packed, self.scales = _packed(weight, bits)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)

    @property
    def saved(self) -> int:
        """Numbers that the packed weight has fewer than the weight that it stands for."""
        return self.in_features * self.out_features - self.weight.numel()

    @property
    def widened_bytes(self) -> int:
        """Bytes of the weight while it is multiplied; 8 bits are widened to float32 first."""
        each = self.scales.dtype.itemsize + (2 * 4 if self.scales.bits == "8bit" else 0)
        return each * self.in_features * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            return cast(Tensor, _Product.apply(input, self))  # type: ignore[no-untyped-call]
        return linear(input, full_weight(self), self.bias)


class _Product(torch.autograd.Function):
    """The product with its gradient for x, which widens the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, full_weight(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope @ full_weight(ctx.layer), None


def _packed(weight: Tensor, bits: Bits) -> tuple[Tensor, Scales]:
    """A weight [outputs, inputs] on the device where it is used -> its packed form."""
    from bitsandbytes import functional

    if bits == "4bit":
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    else:
        packed, state, _ = functional.int8_vectorwise_quant(weight.half())
    return packed, Scales(bits, state, weight.dtype)


def full_weight(layer: nn.Linear) -> Tensor:
    """The weight [outputs, inputs] of a linear layer in the model's type, widened if it is packed."""
    if not isinstance(layer, QuantizedLinear):
        return layer.weight
    from bitsandbytes import functional

    bits, state, dtype = layer.scales
    widen = functional.int8_vectorwise_dequant if bits == "8bit" else functional.dequantize_4bit
    full: Tensor = widen(layer.weight, state)
    return full.to(dtype)


def quantize(model: nn.Module, layers: Sequence[str], bits: Bits, device: torch.device) -> None:
    """Pack the weights of linear layers, by their names in the model, one after another on the device that they go to.

    Raises SettingsError where there are none, or where bitsandbytes or the device fails.
    """
    if not layers:
        raise SettingsError(
            f"model.quantize={bits} has no effect on {type(model).__name__}, which has no linear layers to pack; remove it"
        )
    try:
        for name in layers:
            model.set_submodule(name, QuantizedLinear(cast(nn.Linear, model.get_submodule(name)), bits, device))
    except Exception as error:  # bitsandbytes loads a library for this device, which can fail in many ways
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SettingsError(
            f"model.quantize={bits}: bitsandbytes cannot pack the weights ({first[:200]}); install one that is made for this "
            "device, choose a smaller model, or remove model.quantize"
        ) from error


def packed_bits(model: nn.Module) -> Bits | None:
    """The bits in which a model's weights are held, if they are packed."""
    return next((layer.scales.bits for _, layer in quantized_layers(model)), None)


def packed_note(model: nn.Module, parameters: int) -> str:
    """A sentence on the weights that are packed, of all `parameters`."""
    layers = [layer for _, layer in quantized_layers(model)]
    packed = sum(layer.in_features * layer.out_features for layer in layers)
    share = f"{100 * packed / parameters:.0f} % of the weights"
    return f"{share}, those of {len(layers)} linear layers, are held in {'4' if packed_bits(model) == '4bit' else '8'} bits"


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """The packed layers of a model, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def check_quantize(bits: Bits, device: torch.device) -> None:
    """Raises SettingsError where weights cannot be quantized: without a GPU, or without bitsandbytes."""
    if device.type != "cuda":
        raise SettingsError(
            f"model.quantize={bits} needs a GPU, and this run is on the CPU; remove it (model.dtype=bfloat16 halves the weights)"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(f"model.quantize={bits} needs bitsandbytes; run pip install 'slimrl[quantize]'")
