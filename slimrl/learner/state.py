"""The state of an optimizer: masters and moments by the names of their parameters, which with the loss scale are all that its
next update depends on.

Of several owners each has its pieces. A whole tensor is put together in the leader's memory when it is written, and cut when it
is read, one at a time: all of them take 12 bytes for each weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from slimrl.learner.optimizer import MOMENTS, MasterAdamW
from slimrl.machine.ranks import Ranks
from slimrl.machine.tensors import Tensors, TensorStream, are_finite

STEP, MASTER = "step", "master"


def tensors_of(optimizer: MasterAdamW) -> Tensors:
    """The state of an optimizer. With a single owner these are the tensors that it updates, not copies.

    With several owners all of them call this and read the stream to its end: the leader gets whole tensors in host memory, the
    others empty ones.
    """
    shards = optimizer.shards
    steps = {number: step for table in shards.ranks.exchange(_steps(optimizer)) for number, step in table.items()}
    entries = [*_entries(optimizer, steps)]

    def contents() -> Iterator[Tensor]:
        for _, number, kind in entries:
            if kind == STEP:
                yield torch.tensor(steps[number])
            else:
                yield shards.whole(number, _piece(optimizer, number, kind))

    if not shards.divided:
        return dict(zip((key for key, *_ in entries), contents(), strict=True))
    shapes = {key: () if kind == STEP else shards.shapes[number] for key, number, kind in entries}
    pieces = (_piece(optimizer, number, kind) for _, number, kind in entries if kind != STEP)
    finite = shards.ranks.exchange(are_finite(piece for piece in pieces if piece is not None))
    return TensorStream({key: torch.empty(shapes[key], device="meta") for key in shapes}, contents(), all(finite))


def restore_state(optimizer: MasterAdamW, tensors: Mapping[str, Tensor], scale: tuple[float, int]) -> None:
    """Restore masters, moments and loss scale from the `tensors_of` an optimizer over the same parameters.

    With several owners only the leader calls this; `share_state` has to follow, which reads `tensors`.
    """
    optimizer.loss_scale, optimizer.good_updates = scale
    if optimizer.shards.divided:
        optimizer.undealt = tensors
        return
    steps = _steps_in(optimizer, tensors)
    _make_room(optimizer, steps, scale)
    for key, number, kind in _entries(optimizer, steps):
        if (piece := _piece(optimizer, number, kind)) is not None and kind != STEP:
            piece.copy_(tensors[key])


def share_state(optimizer: MasterAdamW, ranks: Ranks) -> None:
    """Give every rank the leader's state; all ranks call this, with equal weights.

    Several owners get their pieces of what the leader has restored. If it has restored nothing, they keep what they have, or
    begin with the weights and no moments.
    """
    if optimizer.shards.divided:
        _deal(optimizer)
        return
    ((steps, scale), *_) = ranks.exchange((_steps(optimizer), optimizer.scale))
    if not ranks.leads:
        _make_room(optimizer, steps, scale)
    pieces = (_piece(optimizer, number, kind) for _, number, kind in _entries(optimizer, steps) if kind != STEP)
    ranks.copy(piece for piece in pieces if piece is not None)


def _deal(optimizer: MasterAdamW) -> None:
    whole, ranks = optimizer.undealt, optimizer.shards.ranks
    restored = None if whole is None else _steps_in(optimizer, whole)
    ((steps, scale), *_) = ranks.exchange((restored, optimizer.scale))
    if steps is None and any(ranks.exchange(bool(_steps(optimizer)))):
        return
    _make_room(optimizer, steps or {}, scale)
    optimizer.copy_weights()
    if steps is not None:
        for key, number, kind in _entries(optimizer, steps):
            if kind != STEP:
                dealt = optimizer.shards.deal(number, None if whole is None else whole[key])
                if dealt is not None and (piece := _piece(optimizer, number, kind)) is not None:
                    piece.copy_(dealt)
                del dealt  # makes room for the next one
    optimizer.undealt = None


def _entries(optimizer: MasterAdamW, steps: Mapping[int, float]) -> Iterator[tuple[str, int, str]]:
    """Key, number of the parameter, and kind of every tensor, in the order in which a checkpoint has them."""
    for number, (name, parameter) in enumerate(zip(optimizer.names, optimizer.parameters, strict=True)):
        kinds = (MASTER,) if parameter.dtype != torch.float32 else ()
        for kind in (*kinds, *(MOMENTS if number in steps else ())):
            yield f"{name}:{kind}", number, kind


def _piece(optimizer: MasterAdamW, number: int, kind: str) -> Tensor | None:
    """This rank's part of a tensor, without a copy; None where it has none."""
    master = optimizer.masters.get(number)
    if master is None or kind == MASTER:
        return None if master is None else master.detach()
    state: dict[str, Tensor] = optimizer.optimizer.state[master]
    return state[kind]


def _steps(optimizer: MasterAdamW) -> dict[int, float]:
    """Updates of each weight that this rank has a piece of, by number; of those that were updated."""
    states = {number: optimizer.optimizer.state.get(master) for number, master in optimizer.masters.items()}
    return {number: float(state[STEP]) for number, state in states.items() if state}


def _steps_in(optimizer: MasterAdamW, tensors: Mapping[str, Tensor]) -> dict[int, float]:
    keys = {number: f"{name}:{STEP}" for number, name in enumerate(optimizer.names)}
    return {number: float(tensors[key]) for number, key in keys.items() if key in tensors}


def _make_room(optimizer: MasterAdamW, steps: Mapping[int, float], scale: tuple[float, int]) -> None:
    """Forget moments and gradients, and allocate moments of the weights that were updated, whose numbers are still to come."""
    optimizer.drop()
    optimizer.loss_scale, optimizer.good_updates = scale
    optimizer.optimizer.state.clear()
    for number, master in optimizer.masters.items():
        if number in steps:
            step = torch.tensor(steps[number], device=master.device)
            moments = (step, torch.empty_like(master.detach()), torch.empty_like(master.detach()))
            optimizer.optimizer.state[master] = dict(zip(MOMENTS, moments, strict=True))
