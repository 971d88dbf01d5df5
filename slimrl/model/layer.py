"""Decoder layers with few passes over memory, on a CPU.

Between a layer's matrix products transformers' modules run some thirty operations over activations, forward, and twice as
many backward. Where products are small or narrow these take as long as the products. A fused layer computes the same with
the kernels of `slimrl.kernels`, keeps less for the backward pass, and adds the gradients of weights to their sums in place.
The residual stream is float32 whatever the type of the weights. `families` says which layers these are and how they differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimrl.kernels.embedding import running_gradient
from slimrl.kernels.layers import add_norm, gate, gate_backward, norm_again, norm_backward, rotate
from slimrl.kernels.linear import lowered, together
from slimrl.kernels.native import takes
from slimrl.kernels.packed import SpanAttention, packed_attention, packed_attention_backward
from slimrl.model.attention import AttentionPlan, PackedRows
from slimrl.model.families import Design, Weights, design_of, weights_of


class FusedLayer(nn.Module):
    """The forward pass of a decoder layer, in front of its own class, which serves where the kernels do not."""

    design: Design

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        """[N, T, D] in the weights' type or float32 -> [N, T, D] float32; in the weights' type without the kernels."""
        layer: Any = self
        design: Design = layer.design
        plan: Any = others.get("plan")
        rotary: Any = others.get("position_embeddings")
        w, gradient = weights_of(layer, design.norms), torch.is_grad_enabled()
        known = plan is not None and rotary is not None and rotary[0].shape[-1] == design.head_width
        if not takes(w.query) or not known or (gradient and not isinstance(plan, PackedRows)):
            own: Tensor = super().forward(hidden_states.to(w.query.dtype), **others)
            return own
        shape = hidden_states.shape
        x = hidden_states.reshape(-1, shape[-1]).float().contiguous()
        tables = (part if part.dtype == torch.float32 else part.to(w.query.dtype) for part in rotary)
        cosine, sine = (part.expand(shape[0], -1, -1).reshape(len(x), -1).contiguous() for part in tables)
        call = _Call(design, cosine, sine)
        if not gradient:
            return _inferred(x, w, call, plan, shape[:2]).view(shape)
        out: Tensor = _Layer.apply(x, call, plan, *w)  # type: ignore[no-untyped-call]
        return out.view(shape)


class FusedNorm(nn.Module):
    """The norm behind the last fused layer: float32 in, the weights' type out."""

    design: Design
    """Of a layer before it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        norm: Any = self
        weight: Tensor = norm.weight
        if not takes(weight):
            own: Tensor = super().forward(hidden_states.to(weight.dtype))
            return own
        x = hidden_states.reshape(-1, hidden_states.shape[-1]).float().contiguous()
        y: Tensor = _Norm.apply(x, weight, norm.design)  # type: ignore[no-untyped-call]
        return y.view(hidden_states.shape)


def fuse(modules: Sequence[nn.Module], windows: Sequence[int]) -> None:
    """Let these layers and this norm, which `families.fusible` has found, use the kernels; names and what is saved stay as
    they are.

    `windows` are the widths of the layers' sliding windows, 0 for none.
    """
    designs = [design_of(module, window) for module, window in zip(modules[:-1], windows, strict=True)]
    for module, design in zip(modules, (*designs, designs[0]), strict=True):
        own, fused = type(module), FusedNorm if module is modules[-1] else FusedLayer
        module.__class__ = in_front(fused, own)
        module.design = design  # type: ignore[assignment]


def in_front(fused: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """A class of `own`'s name whose forward pass is that of `fused`, which may call `own`'s."""
    return type(own.__name__, (fused, own), {"__module__": own.__module__})


def separate(modules: Sequence[nn.Module]) -> None:
    """Undo `fuse`."""
    for module in modules:
        vars(module).pop("design", None)
        module.__class__ = type(module).__mro__[2]  # behind the mixed class and the fused one


class _Call(NamedTuple):
    """Constants of one forward call of a layer."""

    design: Design
    cosine: Tensor
    """[N, d] in the weights' type or float32; likewise `sine`."""
    sine: Tensor


class _Queries(NamedTuple):
    """A layer up to attention, as the backward pass needs it."""

    x: Tensor
    """[N, D] float32."""
    scale: Tensor | None
    """[N], of the norm; None where there is none, like all scales."""
    query: Tensor
    """[N, heads, d], before a norm of heads; without one, at its rotary position. Likewise `key` and `value`."""
    key: Tensor
    value: Tensor


class _Branches(NamedTuple):
    """A layer behind attention, as the backward pass needs it."""

    attended: Tensor | None
    """[N, D], before the norm behind attention; None without it. Likewise `fed`, behind the MLP."""
    attended_scale: Tensor | None
    middle: Tensor
    """[N, D] float32, the residual stream behind attention."""
    middle_scale: Tensor | None
    gated: Tensor
    """[N, F], before the activation; likewise `up`."""
    up: Tensor
    fed: Tensor | None
    fed_scale: Tensor | None


def _inferred(x: Tensor, w: Weights, call: _Call, plan: AttentionPlan, shape: tuple[int, ...]) -> Tensor:
    """x [N * T, D] float32 of rows and tokens `shape` (N, T) -> the same, without gradient, through any plan."""
    design = call.design
    _, _, query, key, value = _queries(x, w, call)
    placed = (_placed(query, w.query_norm, call)[0], _placed(key, w.key_norm, call)[0], value)
    by_head = (part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in placed)
    found = plan.attend(design.index, *by_head, scaling=design.scaling, window=design.window)
    branch, branches = _branches(x, found.transpose(1, 2).reshape(len(x), -1), w, call)
    return branches.middle.add_(branch)


def _queries(x: Tensor, w: Weights, call: _Call) -> _Queries:
    """Of x [N, D] float32; not yet normalized by head, nor at their positions."""
    _, h, scale = _before(x, None, w.before_attention, w, call)
    parts = _products(h, w, call, "query", "key", "value")
    return _Queries(x, scale, *(part.view(len(h), -1, call.design.head_width) for part in parts))


def _placed(part: Tensor, norm: Tensor | None, call: _Call) -> tuple[Tensor, Tensor | None]:
    """A query or key [N, heads, d] normalized and at its position, in place where it has no norm; and the norm's scale."""
    scale = None
    if norm is not None:
        normalized, _, scale = _behind(part.view(-1, len(norm)), norm, call)
        part = normalized.view_as(part)
    if call.design.rotary:
        rotate(part, call.cosine, call.sine)
    return part, scale


def _branches(x: Tensor, attended: Tensor, w: Weights, call: _Call) -> tuple[Tensor, _Branches]:
    """x [N, D] float32 and attention [N, H * d] -> what the MLP adds to the residual stream, and what led there."""
    (projected,) = _products(attended, w, call, "out")
    branch, kept, kept_scale = _behind(projected, w.behind_attention, call)
    middle, h, scale = _before(x, branch, w.before_mlp, w, call)
    gated, up = _products(h, w, call, "gate", "up")
    (projected,) = _products(gate(gated, up, gelu=call.design.gelu), w, call, "down")
    branch, fed, fed_scale = _behind(projected, w.behind_mlp, call)
    return branch, _Branches(kept, kept_scale, middle, scale, gated, up, fed, fed_scale)


def _products(x: Tensor, w: Weights, call: _Call, *names: str) -> list[Tensor]:
    return together(x, [w.linear(name, call.design.lora_scaling) for name in names])


def _before(
    x: Tensor, delta: Tensor | None, norm: Tensor | None, w: Weights, call: _Call
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`add_norm`; without a norm the sum, and the sum in the weights' type."""
    if norm is not None:
        return add_norm(x, delta, norm, call.design.epsilon, call.design.norms.offset)
    total = x if delta is None else x + delta
    return total, total.to(w.query.dtype), None


def _behind(x: Tensor, norm: Tensor | None, call: _Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [N, D] in the weights' type -> the same normalized, and what the norm's gradient needs: x and its scale."""
    if norm is None:
        return x, None, None
    _, normalized, scale = add_norm(x, None, norm, call.design.epsilon, call.design.norms.offset)
    return normalized, x, scale


class _Layer(torch.autograd.Function):
    """A layer over packed rows. Norms and the gate's product are made again in the backward pass, products are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, plan: PackedRows, *weights: Any) -> Tensor:
        w, how = Weights(*weights), SpanAttention(plan.spans, call.design.scaling, call.design.window)
        queries = _queries(x, w, call)
        query, key = _placed(queries.query, w.query_norm, call)[0], _placed(queries.key, w.key_norm, call)[0]
        attended, normalizers = packed_attention(query, key, queries.value, how)
        branch, branches = _branches(x, attended.flatten(1), w, call)
        ctx.save_for_backward(*queries, attended, normalizers, *branches, *weights)
        ctx.call, ctx.how, ctx.parameters = call, how, weights
        return branches.middle + branch

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        queries, attended, normalizers = _Queries(*islice(saved, len(_Queries._fields))), next(saved), next(saved)
        branches, w = _Branches(*islice(saved, len(_Branches._fields))), Weights(*saved)
        call, ctx.call = ctx.call, None
        assert call is not None, "a fused layer's graph is used up by its first backward pass"
        wanted = (p if needed else None for p, needed in zip(ctx.parameters, ctx.needs_input_grad[3:], strict=True))
        back = _Backward(slope, w, call.design, dict(zip(Weights._fields, wanted, strict=True)))
        narrow = back.branches(branches)
        back.weights("out", narrow, attended.flatten(1))
        # Where there is no norm, what was kept is at its position already.
        query, of_query = (queries.query, None) if w.query_norm is None else _placed(queries.query, w.query_norm, call)
        key, of_key = (queries.key, None) if w.key_norm is None else _placed(queries.key, w.key_norm, call)
        kept = (query, key, queries.value, attended, normalizers)
        slopes = packed_attention_backward(back.inputs("out", narrow).view_as(attended), kept, ctx.how)
        if call.design.rotary:
            for part in slopes[:2]:
                rotate(part, call.cosine, call.sine, back=True)
        by_head = (
            back.behind("query_norm", slopes[0], queries.query, of_query),
            back.behind("key_norm", slopes[1], queries.key, of_key),
            slopes[2],
        )
        back.queries(queries, [part.flatten(1) for part in by_head])
        return (back.total, None, None, *back.result())


class _Backward:
    """Gradients of one layer: those of products' matrices are added to running sums where they have them, all others are returned
    to autograd."""

    def __init__(self, slope: Tensor, w: Weights, design: Design, wanted: dict[str, Tensor | None]) -> None:
        """`wanted` holds the parameters that want a gradient."""
        self.total = slope.clone(memory_format=torch.contiguous_format)
        """[N, D] float32: the gradient of the residual stream."""
        self.w, self.design, self.wanted = w, design, wanted
        self.found: dict[str, Tensor] = {}

    def branches(self, kept: _Branches) -> Tensor:
        """The gradient [N, D] of what `out` gives, in the weights' type."""
        narrow = self.behind("behind_mlp", self.total.to(self.w.down.dtype), kept.fed, kept.fed_scale)
        gated, up, product = kept.gated, kept.up, self.inputs("down", narrow)
        # The first two become gradients, and the third, their gradient, becomes the gate's product.
        gate_backward(gated, up, product, gelu=self.design.gelu)
        self.weights("down", narrow, product)
        h = self.again("before_mlp", kept.middle, kept.middle_scale)
        self.weights("gate", gated, h)
        self.weights("up", up, h)
        of_h = self.inputs("gate", gated)
        self.inputs("up", up, of_h)
        narrow = self.before("before_mlp", of_h, kept.middle, kept.middle_scale)
        return self.behind("behind_attention", narrow, kept.attended, kept.attended_scale)

    def queries(self, kept: _Queries, slopes: Sequence[Tensor]) -> None:
        """Under the gradients [N, heads * d] of what `query`, `key` and `value` give."""
        h, of_h = self.again("before_attention", kept.x, kept.scale), None
        for name, slope in zip(("query", "key", "value"), slopes, strict=True):
            self.weights(name, slope, h)
            of_h = self.inputs(name, slope, of_h)
        assert of_h is not None
        self.before("before_attention", of_h, kept.x, kept.scale)

    def weights(self, name: str, slope: Tensor, x: Tensor) -> None:
        """Weight, bias and adapter of a product with x [N, inputs], under the slope [N, outputs] of its result."""
        adapter = self.w.linear(name, self.design.lora_scaling).adapter
        self.matrix(name, slope, x)
        if self.wanted[f"{name}_bias"] is not None:
            self.found[f"{name}_bias"] = slope.sum(0, dtype=torch.float32)
        if adapter is not None:
            self.matrix(f"{name}_a", slope @ adapter.b, x, adapter.scaling)
            self.matrix(f"{name}_b", slope, lowered(x, [adapter])[0])

    def matrix(self, name: str, slope: Tensor, x: Tensor, scaling: float = 1.0) -> None:
        """A matrix [outputs, inputs] that x [N, inputs] is multiplied with, under the slope [N, outputs] of the product, which is
        multiplied by `scaling`."""
        weight = self.wanted[name]
        if weight is not None:
            running = running_gradient(weight)
            if running is None:
                self.found[name] = torch.addmm(weight, slope.t(), x, beta=0, alpha=scaling)
            else:
                running.addmm_(slope.t(), x, alpha=scaling)

    def inputs(self, name: str, slope: Tensor, total: Tensor | None = None) -> Tensor:
        """The gradient [N, inputs] of what enters a product, under the slope [N, outputs] of its result; added to `total`."""
        weight, _, adapter = self.w.linear(name, self.design.lora_scaling)
        found = slope @ weight if total is None else total.addmm_(slope, weight)
        return found if adapter is None else found.addmm_(slope @ adapter.b, adapter.a, alpha=adapter.scaling)

    def again(self, name: str, x: Tensor, scale: Tensor | None) -> Tensor:
        """The second result of `_before`."""
        norm: Tensor | None = getattr(self.w, name)
        if norm is None or scale is None:
            return x.to(self.w.query.dtype)
        return norm_again(x, norm, scale, self.design.norms.offset)

    def before(self, name: str, slope: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
        """Adds the gradient of x under that of `_before`'s second result; returns `total` in the weights' type."""
        norm: Tensor | None = getattr(self.w, name)
        if norm is None or scale is None:
            return self.total.add_(slope).to(slope.dtype)
        narrow, self.found[name] = norm_backward(slope, x, norm, scale, self.total, self.design.norms.offset)
        return narrow

    def behind(self, name: str, slope: Tensor, x: Tensor | None, scale: Tensor | None) -> Tensor:
        """The gradient of x under that of `_behind`'s first result; `slope` itself without a norm."""
        norm: Tensor | None = getattr(self.w, name)
        if norm is None or x is None or scale is None:
            return slope
        slopes, rows = slope.view(-1, len(norm)), x.view(-1, len(norm))
        found, self.found[name] = norm_backward(slopes, rows, norm, scale, None, self.design.norms.offset)
        return found.view_as(slope)

    def result(self) -> Iterator[Tensor | None]:
        """For autograd, in the order of `Weights`."""
        for name, weight in self.wanted.items():
            found = None if weight is None else self.found.get(name)
            yield found if found is None or weight is None else found.to(weight.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, design: Design) -> Tensor:
        _, y, scale = add_norm(x, None, weight, design.epsilon, design.norms.offset)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = design.norms.offset
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        total = torch.zeros_like(x)
        _, of_weight = norm_backward(slope.contiguous(), x, weight, scale, total, ctx.offset)
        return total, of_weight.to(weight.dtype), None
