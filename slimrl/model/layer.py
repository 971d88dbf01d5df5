"""Decoder layers of the Llama family with few passes over memory, on a CPU.

Between a layer's matrix products transformers' modules run some thirty operations over activations, forward, and twice as
many backward. Where products are small or narrow these take as long as the products. A fused layer computes the same with
the kernels of `slimrl.kernels`, keeps less for the backward pass, and adds the gradients of weights to their sums in place.
The residual stream is float32 whatever the type of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrl.kernels.embedding import running_gradient
from slimrl.kernels.layers import add_norm, gate, gate_backward, norm_again, norm_backward, rotate
from slimrl.kernels.linear import FewRowsLinear, together
from slimrl.kernels.native import has_kernels, lanes, takes
from slimrl.kernels.packed import SpanAttention, can_attend, packed_attention, packed_attention_backward
from slimrl.kernels.stack import LayerWeights
from slimrl.model.attention import AttentionPlan, PackedRows

FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
"""transformers' layers of RMSNorm, rotary attention with grouped keys, and SwiGLU. `fuse` compares what each model gives."""
SILU = ("SiLU", "SiLUActivation")


@dataclass(frozen=True)
class _Call:
    """Constants of one forward call of a layer."""

    cosine: Tensor
    """[N, d]; likewise `sine`."""
    sine: Tensor
    head_width: int
    epsilons: tuple[float, float]
    """Of the norm before attention and of that before the gate."""
    how: SpanAttention


class FusedLayer(nn.Module):
    """The forward pass of a decoder layer, in front of its own class, which serves where the kernels do not."""

    window: int
    """Width of a sliding window, 0 for none."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        """[N, T, D] in the weights' type or float32 -> [N, T, D] float32; in the weights' type without the kernels."""
        layer: Any = self
        plan: Any = others.get("plan")
        rotary: Any = others.get("position_embeddings")
        weight, attention, gradient = layer.input_layernorm.weight, layer.self_attn, torch.is_grad_enabled()
        known = plan is not None and rotary is not None and rotary[0].shape[-1] == attention.head_dim
        if not takes(weight) or not known or (gradient and not isinstance(plan, PackedRows)):
            own: Tensor = super().forward(hidden_states.to(weight.dtype), **others)
            return own
        shape = hidden_states.shape
        x = hidden_states.reshape(-1, shape[-1]).float().contiguous()
        cosine, sine = (
            part.to(weight.dtype).expand(shape[0], -1, -1).reshape(len(x), -1).contiguous() for part in rotary
        )
        if not gradient:
            return _inferred(layer, x, (cosine, sine), plan, shape[:2]).view(shape)
        how = SpanAttention(plan.spans, attention.scaling, layer.window)
        epsilons = (layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon)
        call = _Call(cosine, sine, attention.head_dim, epsilons, how)
        out: Tensor = _Layer.apply(x, call, *layer_weights(layer))  # type: ignore[no-untyped-call]
        return out.view(shape)


def _inferred(
    layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], plan: AttentionPlan, shape: tuple[int, ...]
) -> Tensor:
    """x [N * T, D] float32 of rows and tokens `shape` (N, T) -> the same, without gradient, through any plan."""
    attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
    _, h, _ = add_norm(x, None, norms[0].weight, norms[0].variance_epsilon)
    query, key, value = (
        part.view(len(h), -1, attention.head_dim)
        for part in together(h, _pairs(attention.q_proj, attention.k_proj, attention.v_proj))
    )
    rotate(query, *rotary)
    rotate(key, *rotary)
    by_head = (part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
    found = plan.attend(attention.layer_idx, *by_head, scaling=attention.scaling, window=layer.window)
    attended = attention.o_proj(found.transpose(1, 2).reshape(len(h), -1))
    total, h, _ = add_norm(x, attended, norms[1].weight, norms[1].variance_epsilon)
    return total.add_(mlp.down_proj(gate(*together(h, _pairs(mlp.gate_proj, mlp.up_proj)))))


def _pairs(*products: Any) -> list[tuple[Tensor, Tensor | None]]:
    return [_pair(product) for product in products]


class FusedNorm(nn.Module):
    """The norm behind the last fused layer: float32 in, the weights' type out."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        norm: Any = self
        weight: Tensor = norm.weight
        if not takes(weight):
            own: Tensor = super().forward(hidden_states.to(weight.dtype))
            return own
        x = hidden_states.reshape(-1, hidden_states.shape[-1]).float().contiguous()
        y: Tensor = _Norm.apply(x, weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
        return y.view(hidden_states.shape)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        _, y, scale = add_norm(x, None, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        total = torch.zeros_like(x)
        _, of_weight = norm_backward(slope.contiguous(), x, weight, scale, total)
        return total, of_weight.to(weight.dtype), None


class _Layer(torch.autograd.Function):
    """A layer over packed rows. Norms and the gate's product are made again in the backward pass, products are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *weights: Any) -> Tensor:
        norm, wq, bq, wk, bk, wv, bv, wo, bo, gate_norm, wg, bg, wu, bu, wd, bd = weights
        _, h, scale = add_norm(x, None, norm, call.epsilons[0])
        query, key, value = (
            part.view(len(h), -1, call.head_width) for part in together(h, ((wq, bq), (wk, bk), (wv, bv)))
        )
        rotate(query, call.cosine, call.sine)
        rotate(key, call.cosine, call.sine)
        attended, normalizers = packed_attention(query, key, value, call.how)
        (projected,) = together(attended.flatten(1), ((wo, bo),))
        middle, h, gate_scale = add_norm(x, projected, gate_norm, call.epsilons[1])
        gated, up = together(h, ((wg, bg), (wu, bu)))
        (projected,) = together(gate(gated, up), ((wd, bd),))
        out = middle + projected
        ctx.save_for_backward(
            x, scale, query, key, value, attended, normalizers, middle, gate_scale, gated, up, *weights
        )
        ctx.call, ctx.parameters = call, weights
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, query, key, value, attended, normalizers, middle, gate_scale, gated, up, *weights = ctx.saved_tensors
        norm, wq, _, wk, _, wv, _, wo, _, gate_norm, wg, _, wu, _, wd, _ = weights
        call, ctx.call = ctx.call, None
        assert call is not None, "a fused layer's graph is used up by its first backward pass"
        gradients = _Gradients(ctx.parameters, ctx.needs_input_grad[2:])
        total = slope.clone(memory_format=torch.contiguous_format)
        narrow = total.to(wd.dtype)
        of_gate = narrow @ wd
        gate_backward(gated, up, of_gate)  # the first two are now gradients, and `of_gate` is the gate's product
        gradients.add(14, narrow, of_gate)
        h = norm_again(middle, gate_norm, gate_scale)
        gradients.add(10, gated, h)
        gradients.add(12, up, h)
        narrow, gradients.found[9] = norm_backward(
            torch.addmm(gated @ wg, up, wu), middle, gate_norm, gate_scale, total
        )
        gradients.add(7, narrow, attended.flatten(1))
        saved = (query, key, value, attended, normalizers)
        of_query, of_key, of_value = packed_attention_backward((narrow @ wo).view_as(attended), saved, call.how)
        rotate(of_query, call.cosine, call.sine, back=True)
        rotate(of_key, call.cosine, call.sine, back=True)
        h = norm_again(x, norm, scale)
        parts = [part.flatten(1) for part in (of_query, of_key, of_value)]
        for place, part in zip((1, 3, 5), parts, strict=True):
            gradients.add(place, part, h)
        of_h = (parts[0] @ wq).addmm_(parts[1], wk).addmm_(parts[2], wv)
        _, gradients.found[0] = norm_backward(of_h, x, norm, scale, total)
        return (total, None, *gradients.result())


class _Gradients:
    """The gradients of a layer's weights: added to running sums where weights have them, else returned to autograd."""

    def __init__(self, parameters: Sequence[Tensor | None], wanted: Sequence[bool]) -> None:
        self.parameters, self.wanted = parameters, wanted
        self.found: dict[int, Tensor] = {}

    def add(self, place: int, slope: Tensor, x: Tensor) -> None:
        """The weight at `place`, whose bias follows it, under the slope [N, outputs] of its product with x [N, inputs]."""
        weight = self.parameters[place]
        assert weight is not None
        if self.wanted[place]:
            running = running_gradient(weight)
            if running is None:
                self.found[place] = slope.t() @ x
            else:
                running.addmm_(slope.t(), x)
        if self.wanted[place + 1]:
            self.found[place + 1] = slope.sum(0, dtype=torch.float32)

    def result(self) -> Iterator[Tensor | None]:
        """For autograd, in order."""
        for place, weight in enumerate(self.parameters):
            found = self.found.get(place) if self.wanted[place] else None
            yield found if found is None or weight is None else found.to(weight.dtype)


def layer_weights(layer: Any) -> LayerWeights:
    """The weights of one of `FAMILY`."""
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        layer.input_layernorm.weight,
        *_pair(attention.q_proj),
        *_pair(attention.k_proj),
        *_pair(attention.v_proj),
        *_pair(attention.o_proj),
        layer.post_attention_layernorm.weight,
        *_pair(mlp.gate_proj),
        *_pair(mlp.up_proj),
        *_pair(mlp.down_proj),
    )


def _pair(product: Any) -> tuple[Tensor, Tensor | None]:
    return product.weight, product.bias


def fusible(trunk: Any) -> list[nn.Module]:
    """The layers of a model, and the norm behind them, where all of them can be fused; else none."""
    layers, norm = list(getattr(trunk, "layers", [])), getattr(trunk, "norm", None)
    if not layers or norm is None or not all(_fits(layer) for layer in layers):
        return []
    return [*layers, norm] if type(norm) is type(layers[0].input_layernorm) else []


def _fits(layer: Any) -> bool:
    if type(layer).__name__ not in FAMILY or not type(layer).__module__.startswith("transformers.models."):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    products = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    products += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    weight = layer.input_layernorm.weight
    if {(p.dtype, p.device.type) for p in layer.parameters()} != {(weight.dtype, "cpu")} or not has_kernels(
        weight.dtype
    ):
        return False
    if type(mlp.act_fn).__name__ not in SILU or not all(type(part) in (nn.Linear, FewRowsLinear) for part in products):
        return False
    widths = (len(weight), mlp.gate_proj.out_features, attention.head_dim // 2)
    query, key = (
        weight.new_empty(1, part.out_features).unflatten(1, (-1, attention.head_dim)) for part in products[:2]
    )
    return all(width % lanes() == 0 for width in widths) and can_attend(query, key, key)


def fuse(modules: Sequence[nn.Module], windows: Sequence[int]) -> None:
    """Let these layers and this norm, which `fusible` has found, use the kernels; names and what is saved stay as they are.

    `windows` are the widths of the layers' sliding windows, 0 for none.
    """
    for module, window in zip(modules[:-1], windows, strict=True):
        module.__class__ = in_front(FusedLayer, type(module))
        module.window = window  # type: ignore[assignment]
    modules[-1].__class__ = in_front(FusedNorm, type(modules[-1]))


def separate(modules: Sequence[nn.Module]) -> None:
    """Undo `fuse`."""
    for module in modules:
        vars(module).pop("window", None)
        module.__class__ = type(module).__mro__[2]  # behind the mixed class and the fused one


def in_front(fused: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """A class of `own`'s name whose forward pass is that of `fused`, which may call `own`'s."""
    return type(own.__name__, (fused, own), {"__module__": own.__module__})
