"""AdamW on float32 master weights.

A bf16 weight cannot take a step below half its last digit: at rate 1e-6 hardly any weight of a bf16 model would move.
So where the module is narrower than float32 the optimizer owns float32 copies, sums the micro-batches' gradients in
float32, and writes the copies back after each update. A float32 module is its own master. On a CPU all of this is one
pass over memory (`slimrl.kernels.optimizer`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slimrl.config.sections import OptimizerConfig
from slimrl.errors import NonFiniteError, SpoiledWeightsError
from slimrl.kernels.embedding import drop_gradients, sum_in_place, wide_gradient
from slimrl.kernels.optimizer import AdamW, adamw, can_update, gradient_norm
from slimrl.learner.divided import DividedLayers
from slimrl.learner.shards import Shards
from slimrl.machine.determinism import deterministic_sums
from slimrl.machine.ranks import ALONE, OutOfStepError, RankLostError, Ranks

PROBE_ELEMENTS = 4096
"""Weights per tensor watched for `update/applied_fraction`: a sample, since watching all would cost a copy."""
FIRST_LOSS_SCALE = 2.0**16
GROWTH_INTERVAL = 200

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""As torch's AdamW calls what it keeps of a parameter."""


class MasterAdamW:
    """AdamW (arXiv:1711.05101), gradient clipping, float32 masters, and a loss scale for float16 modules.

    Where `settings` divide its state among `ranks`, each keeps the masters and moments of its piece of the weights (`Shards`),
    and `step` is called by all of them. Of `layers` that are divided, the state is divided as they are:
    their parts are the masters.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: OptimizerConfig,
        ranks: Ranks = ALONE,
        layers: DividedLayers | None = None,
    ) -> None:
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.by_name = {name: number for number, name in enumerate(self.names)}
        self.layers = layers
        self.in_layers = {} if layers is None else {self.by_name[name]: name for name in layers.whole}
        """Names of the weights that `layers` divide, by number."""
        sharers = ranks if settings.sharded or layers is not None else ALONE
        self.shards = Shards(self.parameters, sharers, by_rows=self.in_layers)
        self.undealt: Mapping[str, Tensor] | None = None
        """What the leader has restored and the other owners have not."""
        self.masters: dict[int, nn.Parameter] = {}
        """By number, those of which this rank has a piece."""
        for number, parameter in enumerate(self.parameters):
            if layers is not None and number in self.in_layers:
                own = layers.part(self.in_layers[number])
            else:
                own = self.shards.part(number, parameter.detach())
            if not self.shards.divided and parameter.dtype == torch.float32:
                self.masters[number] = parameter
            elif own.numel():
                self.masters[number] = nn.Parameter(own if own.dtype == torch.float32 else own.float().clone())
        sum_in_place(p for number, p in enumerate(self.parameters) if number not in self.in_layers)
        decay = [m for number, m in self.masters.items() if self.parameters[number].ndim >= 2]
        plain = [m for number, m in self.masters.items() if self.parameters[number].ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )
        self.numbers = {master: number for number, master in self.masters.items()}
        self.fused = can_update(self.parameters)
        self.max_grad_norm = settings.max_grad_norm
        self.loss_scale = FIRST_LOSS_SCALE if any(p.dtype == torch.float16 for p in self.parameters) else 1.0
        self.scaled = self.loss_scale != 1.0
        self.good_updates = 0
        self.sums: dict[int, Tensor] = {}
        """Gradients of narrow weights, by number: as autograd made them, and float32 from the second micro-batch on; those of
        the vocabulary's tables are their wide gradients from the start."""

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient to the sums."""
        with deterministic_sums(loss.device):
            (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        for number, parameter in enumerate(self.parameters):
            if parameter.dtype == torch.float32:
                continue
            wide = wide_gradient(parameter)
            if wide is not None and self.sums.get(number) is not wide:
                self.sums[number] = wide.add_(self.sums[number]) if number in self.sums else wide
            if parameter.grad is None:
                continue
            if number in self.sums:
                self.sums[number] = self.sums[number].float().add_(parameter.grad)
            else:
                self.sums[number] = parameter.grad
            parameter.grad = None

    def gradients(self) -> dict[int, Tensor]:
        """The sums so far, multiplied by the loss scale, by the numbers of their parameters; none for an untouched weight. Those
        of divided layers are this rank's pieces, [n] each.
        """
        own = {number: p.grad for number, p in enumerate(self.parameters) if p.grad is not None}
        return own | self.sums | self._in_pieces()

    def _in_pieces(self) -> dict[int, Tensor]:
        """Gradients of divided layers, by number: this rank's piece of the sum over ranks."""
        if self.layers is None:
            return {}
        pieces = {number: self.layers.gradient(name) for number, name in self.in_layers.items()}
        return {number: piece for number, piece in pieces.items() if piece is not None}

    @torch.no_grad()
    def add_up(self, ranks: Ranks) -> None:
        """Replace the sums by those over all ranks, in float32; a weight that any of them touched is touched on all."""
        if ranks.size == 1:
            return
        own = {number: gradient for number, gradient in self.gradients().items() if number not in self.in_layers}
        touched = torch.zeros(len(self.parameters))
        touched[[*own]] = 1.0
        ranks.add([touched])
        sums: dict[int, Tensor] = {}
        for number in touched.nonzero().squeeze(-1).tolist():
            parameter = self.parameters[number]
            gradient = own.get(number)
            blank = torch.zeros(parameter.shape, device=parameter.device) if gradient is None else gradient
            sums[number] = blank.float().contiguous()
        ranks.add(sums.values())
        for number, total in sums.items():
            if self.parameters[number].dtype == torch.float32:
                self.parameters[number].grad = total
            else:
                self.sums[number] = total

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """The 2-norm of the summed gradients, which `step` scales down to `max_grad_norm`.

        Infinity where a float16 gradient overflowed: it is dropped and the loss scale halved, as usual. Raises
        NonFiniteError, gradients dropped, for any other gradient that is not finite.
        """
        pieces = self._in_pieces()
        whole = [gradient for number, gradient in self.gradients().items() if number not in pieces]
        norm = gradient_norm(whole)
        if pieces:
            square = torch.tensor([gradient_norm([*pieces.values()]) ** 2], dtype=torch.float64)
            self.shards.ranks.add([square])
            norm = math.sqrt(norm**2 + float(square))
        norm /= self.loss_scale
        if math.isfinite(norm):
            return norm
        self.drop()
        if not self.scaled or self.loss_scale <= 1.0:
            raise NonFiniteError(f"the gradient norm is {norm}")
        self.loss_scale /= 2
        self.good_updates = 0
        return math.inf

    def drop(self) -> None:
        """Forget the gradients summed so far."""
        self.sums.clear()
        if self.layers is not None:
            self.layers.drop()
        for tensor in (*self.masters.values(), *self.parameters):
            drop_gradients(tensor)

    @torch.no_grad()
    def step(self, rate: float, norm: float) -> dict[str, float]:
        """One update at `rate` with gradients whose norm `gradient_norm` has found finite; returns what to log.

        Raises SpoiledWeightsError where a weight is not finite afterwards, as under an absurd rate.
        """
        if math.isinf(norm):
            return {"update/skipped": 1.0}
        gradients = self.gradients()
        before = {number: self._watched(number).clone() for number in gradients}
        moving = {number: _sample(gradient) != 0 for number, gradient in gradients.items()}
        # The same guard against a norm of 0 as torch's clip_grad_norm_ has.
        factor = min(1.0, self.max_grad_norm / (norm + 1e-6)) / self.loss_scale
        finite = self._update(gradients, rate, factor)
        self.drop()
        self._grow()
        if not finite:
            raise SpoiledWeightsError("a weight is not finite after the update")
        changed = {number: (self._watched(number) != old) & moving[number] for number, old in before.items()}
        return {
            "update/skipped": 0.0,
            "grad_norm": norm,
            "learning_rate": rate,
            "update/clipped": float(norm > self.max_grad_norm),
            "update/applied_fraction": self._count(changed) / max(1, self._count(moving)),
        }

    def _watched(self, number: int) -> Tensor:
        """A sample of a weight; of one in divided layers, of this rank's piece."""
        if number not in self.in_layers:
            return _sample(self.parameters[number])
        parameter, master = self.parameters[number], self.masters.get(number)
        return parameter.new_empty(0) if master is None else _sample(master).to(parameter.dtype)

    def _count(self, flags: Mapping[int, Tensor]) -> int:
        """Number of flags of the samples that are set, over all pieces."""
        whole = [found.sum() for number, found in flags.items() if number not in self.in_layers]
        count = int(torch.stack(whole).sum()) if whole else 0
        if self.layers is None:
            return count
        pieces = torch.tensor([sum(int(found.sum()) for number, found in flags.items() if number in self.in_layers)])
        self.shards.ranks.add([pieces])
        return count + int(pieces)

    def _update(self, gradients: Mapping[int, Tensor], rate: float, factor: float) -> bool:
        """Move masters and parameters by gradients times `factor`; False where a weight is not finite afterwards."""
        if self.layers is not None:
            self.layers.allocate()
        spoiled = (self._fused_update if self.fused else self._plain_update)(gradients, rate, factor)
        self._write_layers()
        self.shards.spread(sorted({*gradients, *self.in_layers}), self.parameters)
        if spoiled is not None and not self.shards.divided:
            return not spoiled
        largest = torch.stack([torch.linalg.vector_norm(p, math.inf).float() for p in self.parameters]).max()
        return bool(torch.isfinite(largest))

    def _write_layers(self) -> None:
        """Write this rank's pieces into the whole weights of divided layers."""
        for number in self.in_layers:
            if number in self.masters:
                self.shards.part(number, self.parameters[number]).copy_(self.masters[number])

    @contextmanager
    def whole_afterwards(self) -> Iterator[None]:
        """A block, entered by all ranks, in which the whole weights of divided layers have no memory until `step`; they are there
        again when it ends, unless a rank has gone or fallen out of step.
        """
        if self.layers is None:
            yield
            return
        self.layers.release()
        try:
            yield
        finally:
            if self.layers.released and not isinstance(sys.exception(), OutOfStepError | RankLostError):
                self._gather()

    @torch.no_grad()
    def _gather(self) -> None:
        assert self.layers is not None
        self.layers.allocate()
        self._write_layers()
        self.shards.spread(self.in_layers, self.parameters)

    def _plain_update(self, gradients: Mapping[int, Tensor], rate: float, factor: float) -> None:
        for number, master in self.masters.items():
            if number in gradients:
                master.grad = self._piece(number, gradients[number]).float().mul_(factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for number, master in self.masters.items():
            if self.parameters[number].dtype != torch.float32:
                self.shards.part(number, self.parameters[number]).copy_(master)

    def _piece(self, number: int, gradient: Tensor) -> Tensor:
        """This rank's piece of a gradient as `gradients` has it."""
        return gradient if number in self.in_layers else self.shards.part(number, gradient.contiguous())

    def _is_apart(self, number: int) -> bool:
        """True where a master is other memory than the weight."""
        return self.parameters[number].dtype != torch.float32 or number in self.in_layers

    def _fused_update(self, gradients: Mapping[int, Tensor], rate: float, factor: float) -> int:
        """Returns the number of this rank's weights that are not finite afterwards."""
        spoiled = 0
        for group in self.optimizer.param_groups:
            beta1, beta2 = group["betas"]
            settings = AdamW(rate, beta1, beta2, group["eps"], factor)
            for master in group["params"]:
                number = self.numbers[master]
                if number in gradients:
                    state = self.optimizer.state[master]
                    if not state:
                        zeros = (torch.zeros(()), torch.zeros_like(master), torch.zeros_like(master))
                        state |= dict(zip(MOMENTS, zeros, strict=True))
                    parameter, gradient = self.parameters[number], self._piece(number, gradients[number])
                    weight = master if parameter.dtype == torch.float32 else self.shards.part(number, parameter)
                    spoiled += adamw(weight, master, gradient, state, settings, group["weight_decay"])
        return spoiled

    @torch.no_grad()
    def copy_weights(self) -> None:
        """Make masters that are other memory than the weights equal to them."""
        for number, master in self.masters.items():
            if self._is_apart(number):
                master.copy_(self.shards.part(number, self.parameters[number]))

    @property
    def scale(self) -> tuple[float, int]:
        """The loss scale, and the updates since it was last changed."""
        return self.loss_scale, self.good_updates

    def _grow(self) -> None:
        self.good_updates += 1
        if self.scaled and self.good_updates % GROWTH_INTERVAL == 0:
            self.loss_scale *= 2


def _sample(tensor: Tensor) -> Tensor:
    """At most PROBE_ELEMENTS evenly spread elements."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, math.ceil(len(flat) / PROBE_ELEMENTS))]
