"""The check that SlimRL's attention and head give the model's own logits, made once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.machine.limits import is_out_of_memory
from slimrl.model.architecture import LayerAttention, demand_plain_layers, refuse_states
from slimrl.model.attention import HOOK, AttentionPlan, CausalRows, UnsupportedAttentionError
from slimrl.model.families import fusible
from slimrl.model.layer import fuse, separate
from slimrl.model.packing import pack
from slimrl.model.policy import Policy
from slimrl.model.precision import in_float32
from slimrl.model.stack import stack

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit, that two ways of computing the same float32 logits may show."""
PROBE_TOKENS = 12


class _Recorder:
    """Plain causal rows that record what each layer hands over."""

    def __init__(self) -> None:
        self.rows = CausalRows()
        self.layers: dict[int, LayerAttention] = {}
        self.calls = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int) -> Tensor:
        self.calls += 1
        self.layers[layer] = LayerAttention(query.shape[1], key.shape[1], key.shape[-1], value.shape[-1], window)
        return self.rows.attend(layer, query, key, value, scaling=scaling, window=window)


def probe_tokens(policy: Policy) -> tuple[Tensor, Tensor]:
    """Ids and positions [1, T] of a short row."""
    positions = torch.arange(min(PROBE_TOKENS, policy.context), device=policy.device)[None]
    return positions * 7 % policy.head.vocabulary, positions


@torch.no_grad()
def install_hook(policy: Policy) -> tuple[LayerAttention, ...]:
    """Switch the model to SlimRL's attention, demand that it computes what the model's own attention does, and return what
    each layer handed over.

    Raises SettingsError, with the class of the model and what it has that SlimRL cannot carry.
    """
    model, head = policy.model, policy.head
    kind, half = type(model).__name__, model.dtype == torch.float16
    refuse_states(model)
    ids, positions = probe_tokens(policy)
    with in_float32(model):
        own = _tried(lambda: model(input_ids=ids, use_cache=False).logits.float(), f"{kind} cannot be run")
        if not torch.isfinite(own).all():
            beyond = " (float16 has no number beyond 65,504)" if half else ""
            raise SettingsError(
                f"{kind} gives logits that are not finite, so its weights hold numbers that are not{beyond}"
            )
        own_attention = model.config._attn_implementation
        model.set_attn_implementation(HOOK)
        plan = _Recorder()
        hidden = _tried(
            lambda: policy.hidden(ids, positions, plan),
            f"{kind} does not hand attention over through transformers' interface",
        )
        layers = demand_plain_layers(model, plan.layers, plan.calls)
        ours = head(hidden)
        gap = relative_gap(ours, own)
        if not gap <= TOLERANCE:
            model.set_attn_implementation(own_attention)
            before = policy.trunk(input_ids=ids, use_cache=False).last_hidden_state.float()
            where = (
                "attends in a way that SlimRL's attention does not compute: its hidden states differ"
                if relative_gap(hidden.float(), before) > TOLERANCE
                else "computes its logits with more than the output embedding (a scale, a cap or a further layer), which "
                "SlimRL's head does not: they differ"
            )
            raise SettingsError(f"{kind} {where} (by {gap:.1e} of the largest logit, in float32)")
    if half and not torch.isfinite(head(policy.hidden(ids, positions, CausalRows()))).all():
        raise SettingsError(
            f"{kind} overflows in float16, whose largest number is 65,504; set model.dtype=bfloat16 or float32"
        )
    return layers


def _tried(run: Callable[[], Tensor], what: str) -> Tensor:
    """The result of `run`; raises SettingsError that begins with `what`, or gives the reason that attention gave."""
    try:
        return run()
    except UnsupportedAttentionError as error:
        raise SettingsError(f"{what.split()[0]} {error}") from None
    except Exception as error:  # foreign code can raise anything
        if is_out_of_memory(error):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise SettingsError(f"{what} ({type(error).__name__}: {first[:200]})") from error


def relative_gap(ours: Tensor, own: Tensor) -> float:
    """Largest difference as a share of the largest number; not a number where one of them is not."""
    return float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))


def fuse_layers(policy: Policy) -> None:
    """Let the layers of a known family use the kernels, if they give what the model's own give, with and without gradient.

    In a narrow type both round, and the kernels may be twice as far from the float32 result as the model's own operations.
    """
    modules = fusible(policy.trunk)
    if not modules:
        return
    ids, positions = probe_tokens(policy)
    length, first = torch.tensor([ids.shape[1]]), torch.zeros(1, dtype=torch.long)
    spans = pack(
        ids, length, length // 2, first, device=policy.device
    ).plan  # a prompt and a row, in the order of `ids`

    def logits(plan: AttentionPlan, *, gradient: bool = False) -> Tensor:
        with torch.set_grad_enabled(gradient):
            return policy.head(policy.hidden(ids, positions, plan)).detach()

    with in_float32(policy.model):
        exact = logits(CausalRows())
    allowed = max(TOLERANCE, 2 * relative_gap(logits(CausalRows()), exact))
    fuse(modules, [layer.window for layer in policy.attention])
    found = (logits(CausalRows()), logits(spans, gradient=True))
    if all(relative_gap(ours, exact) <= allowed for ours in found):
        stack(policy.trunk)
    else:
        separate(modules)
