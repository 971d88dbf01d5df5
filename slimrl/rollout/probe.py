"""The checks that decoding token by token gives the model's logits, made once, when an engine takes a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.model.attention import CausalRows
from slimrl.model.policy import Policy
from slimrl.model.precision import in_float32, is_narrow
from slimrl.model.probe import TOLERANCE, probe_tokens, relative_gap
from slimrl.model.stack import FusedTrunk, stack, unstack
from slimrl.rollout.cache import Cache, DecodeStep, RowLayout, StepShape
from slimrl.rollout.state import prefill

PROBE_ROWS = 4
"""Enough for the compiled product to take them."""


@torch.inference_mode()
def demand_plain_decoding(policy: Policy) -> None:
    """Two decode steps must give what the whole row gives, in float32; raises SettingsError where they do not.

    Layers with a state of their own would start anew at every token, and positions that a model counts by itself
    would begin again at 0.
    """
    ids, positions = probe_tokens(policy)
    with in_float32(policy.model):
        # The torch operations where a narrow model decodes with them, though its keys are float32 here.
        hidden, whole = _two_steps(policy, rows=1, recorded=is_narrow(policy.model))
        gap = relative_gap(policy.head(hidden)[0], whole)
        if gap <= TOLERANCE:
            return
        forwards, backwards = (policy.hidden(ids, p, CausalRows()) for p in (positions, positions.flip(1)))
        blind = relative_gap(backwards, forwards) <= TOLERANCE
    reason = (
        "does not read the positions that it is given, so a token that is fed by itself is taken for the first of its row"
        if blind
        else f"gives other logits token by token than over the whole row (by {gap:.1e} of the largest, in float32), so "
        "it keeps more than keys and values, which SlimRL's sampler does not carry"
    )
    raise SettingsError(f"{type(policy.model).__name__} {reason}")


@torch.inference_mode()
def check_one_call(policy: Policy) -> None:
    """Let a trunk decode its layers one by one unless all of them in one call give the same."""
    if not isinstance(policy.trunk, FusedTrunk):
        return
    together, _ = _two_steps(policy, rows=PROBE_ROWS, recorded=False)
    unstack(policy.trunk)
    apart, _ = _two_steps(policy, rows=PROBE_ROWS, recorded=False)
    if relative_gap(together.float(), apart.float()) <= TOLERANCE:
        stack(policy.trunk)


def _two_steps(policy: Policy, *, rows: int, recorded: bool) -> tuple[Tensor, Tensor]:
    """The last two tokens of a short row, decoded by so many rows at once -> hidden states [rows, D] behind the last norm, and
    the logits [V] of the whole row.
    """
    ids, positions = probe_tokens(policy)
    known, row = ids.shape[1] - 2, tuple(ids[0].tolist())
    stored, places, logits = prefill(policy, [row[:known], row])
    cache = Cache(prompts=1, width=known, slots=rows, columns=2, recorded=recorded)
    cache.fill(0, stored, places[:1, :known])
    zero = torch.zeros(rows, dtype=torch.long, device=policy.device)
    row_by_head = torch.arange(rows * cache.heads, device=policy.device).view(rows, cache.heads)
    seats = torch.arange(cache.heads * rows, device=policy.device).view(cache.heads, rows)
    layout = RowLayout(row_by_head.t()[None], seats.t().flatten(), zero)
    for time in range(2):
        shape = StepShape(rows=rows, width=known, used_columns=time + 1, unmasked=True)
        step = DecodeStep(cache, layout, shape, time=time, ages=zero + time, lengths=zero + known)
        place = slice(known + time, known + time + 1)
        hidden = policy.hidden(ids[:, place].expand(rows, -1), positions[:, place].expand(rows, -1), step)
    return hidden[:, 0], logits[1]
