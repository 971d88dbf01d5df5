"""The processes that work on one run together, one for each device: their tensors, and what they tell each other.

torch.distributed carries everything: NCCL between GPUs, gloo between CPUs and for Python objects. The process of rank 0 leads:
it alone knows problems, rewards and the run's folder, and tells the others what to compute (`slimrl/parallel/`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from slimrl.errors import SettingsError, SlimError
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.signals import PREEMPTED, Stopped

T = TypeVar("T")

FOREVER = timedelta(days=30)
"""Of a collective: ranks wait as long as the leader scores, measures and writes. `slimrl.parallel.lookout` notices lost ones."""


class RankLostError(SlimError):
    """A process of the run has ended or cannot be reached."""

    exit_code = PREEMPTED  # the run can be resumed


HOST = torch.device("cpu")
BUCKET = 2**18
"""Numbers that are sent at once: every message costs about half a millisecond under gloo, and larger ones overlap less."""
EXIT_SECONDS = 0.2
"""Time in which a process that has closed its connections has ended."""
LOST = ("gloo", "nccl", "connection")
"""Words of the messages of gloo and NCCL."""


class OutOfStepError(BaseException):
    """Its cause is an error of this rank within `in_step`, of which the others cannot be told: they end with the connection."""


class LocalError(SettingsError):
    """An error that only this rank knows, and has to tell the user."""


class RanOutElsewhereError(MemoryError):
    """Memory ran out on another rank."""


class Activity:
    """The work of this process, for the thread that looks whether it hangs."""

    computes = False
    """True where the process must make progress; False where it waits for others or for what has its own deadline, or none."""
    begun = 0
    """Parts of computations so far: micro-batches and layers."""

    @contextmanager
    def of(self, computes: bool) -> Iterator[None]:
        """Within the block the process `computes`, or does not."""
        before, self.computes = self.computes, computes
        try:
            yield
        finally:
            self.computes = before

    def tick(self) -> None:
        """Another part begins."""
        self.begun += 1

    def each(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts of a computation, one after the other, counted."""
        for part in parts:
            self.tick()
            yield part


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run. Every method but `tell` and `check` is called by all of them, in the same order.

    Raises RankLostError where one of them has gone.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Those on this host."""
    check: Callable[[], None] = lambda: None
    """Raises RankLostError where a rank that this process started has ended."""
    activity: Activity = field(default_factory=Activity)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def tell(self, message: object) -> None:
        """Send a message from the leader to all others, which `hear` it."""
        if self.size > 1:
            with _reaching():
                dist.broadcast_object_list([message], src=0, device=HOST)

    def hear(self) -> Any:
        """The next message of the leader."""
        box: list[Any] = [None]
        with _reaching():
            dist.broadcast_object_list(box, src=0, device=HOST)
        return box[0]

    def deal(self, parts: Sequence[T] = ()) -> T:
        """The part of this rank, of those that the leader has for each."""
        if self.size == 1:
            return parts[0]
        box: list[Any] = [None]
        with _reaching():
            dist.scatter_object_list(box, [*parts] if self.leads else None, src=0)
        part: T = box[0]
        return part

    def exchange(self, part: T) -> list[T]:
        """The parts of all ranks, in their order."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        with _reaching():
            dist.all_gather_object(parts, part)
        return parts

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, the same to the last bit on all. Shapes and types are equal on all."""
        self._replace(((tensor, 0) for tensor in tensors), lambda flat, _: dist.all_reduce(flat, async_op=True))

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the leader's."""
        self.copy_from((tensor, 0) for tensor in tensors)

    def copy_from(self, owned: Iterable[tuple[Tensor, int]]) -> None:
        """Replace each tensor by that of the rank beside it."""
        self._replace(owned, lambda flat, rank: dist.broadcast(flat, src=rank, async_op=True))

    def _replace(self, owned: Iterable[tuple[Tensor, int]], begin: Callable[[Tensor, int], Any]) -> None:
        """Replace tensors by what `begin` makes of them in place, small ones of the same rank together."""
        if self.size == 1:
            return
        with _reaching():
            begun = []
            for bucket, rank in _buckets(owned):
                flat = bucket[0] if len(bucket) == 1 else torch.cat([tensor.reshape(-1) for tensor in bucket])
                begun.append((begin(flat, rank), flat, bucket))
            for work, flat, bucket in begun:
                work.wait()
                if len(bucket) > 1:
                    for tensor, part in zip(
                        bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True
                    ):
                        tensor.copy_(part.view_as(tensor))

    def send(self, tensor: Tensor, rank: int = 0) -> None:
        """Give a tensor to a rank, which must `receive` it."""
        with _reaching():
            dist.send(tensor.detach().to(HOST).contiguous(), rank)

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill a contiguous tensor in host memory with what a rank sends."""
        with _reaching():
            dist.recv(tensor, rank)

    def agree(self, error: BaseException | None) -> BaseException | None:
        """The error of any rank, the same on all of them; None where there is none.

        An error that ends the work comes before memory that ran out, which can be tried again with less at once.
        """
        if self.size == 1:
            return error
        found = [e for e in self.exchange(None if error is None else _portable(error)) if e is not None]
        return min(found, key=lambda e: isinstance(e, RanOutElsewhereError), default=None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends in the same way on all ranks: what one of them raises, all raise."""
        try:
            yield
        except (Exception, Stopped) as error:
            raise self.agree(error) or error from None
        if (found := self.agree(None)) is not None:
            raise found


def _buckets(owned: Iterable[tuple[Tensor, int]]) -> list[tuple[list[Tensor], int]]:
    """Tensors of one rank, type and device in lists of up to BUCKET numbers, and each larger tensor alone."""
    found: list[tuple[list[Tensor], int]] = []
    open_ones: dict[tuple[int, torch.dtype, torch.device], tuple[list[Tensor], int]] = {}
    for tensor, rank in owned:
        if tensor.numel() > BUCKET:
            found.append(([tensor.detach()], rank))
            continue
        key = rank, tensor.dtype, tensor.device
        bucket, filled = open_ones.get(key, ([], BUCKET))
        if filled + tensor.numel() > BUCKET:
            bucket, filled = [], 0
            found.append((bucket, rank))
        bucket.append(tensor.detach())
        open_ones[key] = bucket, filled + tensor.numel()
    return found


ALONE = Ranks()
_joined = ALONE


def ranks_here() -> Ranks:
    """This process among the ranks that it has `joined`."""
    return _joined


def _portable(error: BaseException) -> BaseException:
    """The error as other ranks can be sent it: ours as it is, any other by its text."""
    if is_out_of_memory(error):
        return RanOutElsewhereError(str(error))
    return error if isinstance(error, SlimError | Stopped) else RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        with _joined.activity.of(computes=False):
            yield
    except RuntimeError as error:  # of gloo and NCCL, which say that a connection was closed or reset
        if is_out_of_memory(error):
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> RankLostError:
    reason = str(error).strip().split("\n")[0][:160]
    return RankLostError(f"another process of the run has ended or cannot be reached ({reason})")


@contextmanager
def in_step(*expected: type[Exception]) -> Iterator[None]:
    """A pass in which torch lets all ranks meet at places of its own, so that one that leaves it early cannot tell the others.

    Errors that are `expected` come behind the pass. Raises RankLostError where another rank has gone, and OutOfStepError for
    all other errors.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (RankLostError, *expected)):
            raise
        told = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
        if isinstance(error, RuntimeError) and told and not is_out_of_memory(error):
            raise _lost(error) from error
        raise OutOfStepError from error


@contextmanager
def loss_stops() -> Iterator[None]:
    """Turn the loss of a rank into a stop: within the block nothing has changed that a checkpoint would not hold."""
    try:
        yield
    except RankLostError:
        raise Stopped(f"the loss of another process{named_loss()}", PREEMPTED) from None


def named_loss() -> str:
    """In brackets which rank has ended and how, where this process started it; empty where torchrun did."""
    time.sleep(EXIT_SECONDS)
    try:
        _joined.check()
    except RankLostError as lost:
        return f" ({lost})"
    return ""


def named() -> Ranks:
    """This process among the ranks that the environment names, as torchrun sets it; `ALONE` where it names none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    return Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


@contextmanager
def joined(ranks: Ranks, device: torch.device, store: Store) -> Iterator[None]:
    """Within the block the ranks can reach each other, which they do through the store. All of them have to be there."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store.set_timeout(FOREVER)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=FOREVER)
    global _joined
    _joined = ranks
    try:
        yield
    finally:
        _joined = ALONE
        dist.destroy_process_group()
