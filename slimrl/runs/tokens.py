"""The numbers of every token of some completions of a step: rollouts/step-NNNNNNNN.npz, beside the completions themselves.

An .npz file is a zip of arrays, which numpy reads. All of them but `row`, `length` and the vocabulary have one entry per token,
one completion after another. Numbers are float16, about three digits, which is enough to look at. It needs no torch.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimrl.records import TRACED
from slimrl.runs.files import stored_groups

if TYPE_CHECKING:
    from slimrl.algorithm.groups import Collected
    from slimrl.records import Group, Traced

NUMBERS = ("sampler", *TRACED)
"""The log-probability by the sampler, and what `Traced` has."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one completion, [n] each.

    Example: TokenRow((" 4", "2"), {"sampler": [-0.1, -0.2], "weight": [1.0, 1.0]})
    """

    pieces: tuple[str, ...]
    """The text of each token."""
    numbers: Mapping[str, NDArray[np.float32]]
    """By a name of NUMBERS, NaN where unknown; one that no token of the step has is absent."""

    @property
    def given(self) -> NDArray[np.bool_]:
        """True at tokens that an environment wrote, which the sampler did not draw, [n]."""
        return np.isnan(self.numbers["sampler"])

    @property
    def drawn(self) -> int:
        """The number of the others."""
        return len(self.pieces) - int(self.given.sum())

    def part(self, start: int, end: int) -> TokenRow:
        """The tokens from `start` up to `end`."""
        numbers = {name: values[start:end] for name, values in self.numbers.items()}
        return TokenRow(self.pieces[start:end], numbers)

    def runs(self) -> list[tuple[bool, TokenRow]]:
        """The tokens cut where those that were drawn and those that were given meet: True with what was given."""
        given = self.given.tolist()
        ends = [i for i in range(1, len(given)) if given[i] != given[i - 1]]
        places = pairwise([0, *ends, len(given)] if given else [])
        return [(given[start], self.part(start, end)) for start, end in places]


def token_file(
    collected: Collected, traced: Traced | None, most: int, pieces: Callable[[Sequence[int]], list[str]]
) -> bytes | None:
    """The file of a step: the first `most` groups that were trained on and, where these are fewer, of the others.

    `traced` has the numbers of the former, in their order; `pieces` gives the texts of ids. None where there is nothing to store.
    """
    chosen = _chosen(collected, most)
    if not chosen:
        return None
    first: dict[int, int] = {}
    line = 0
    for group in stored_groups(collected):
        first[id(group)] = line
        line += len(group.rollouts)
    completions = [rollout.completion for group in chosen for rollout in group.rollouts]
    drawn = np.array([not given for c in completions for given in c.given or [False] * len(c.token_ids)])
    ids = np.array([i for c in completions for i in c.token_ids], dtype=np.int32)
    known = np.unique(ids)
    arrays: dict[str, NDArray[Any]] = {
        "row": np.array([first[id(g)] + i for g in chosen for i in range(len(g.rollouts))], dtype=np.int32),
        "length": np.array([len(c.token_ids) for c in completions], dtype=np.int32),
        "ids": ids,
        "vocabulary_ids": known,
        "vocabulary": np.frombuffer(json.dumps(pieces(known.tolist())).encode(), dtype=np.uint8),
        "sampler": np.array([p for c in completions for p in c.logprobs], dtype=np.float16),
    }
    arrays["sampler"][~drawn] = np.nan
    if traced is not None:
        arrays |= _numbers(traced, drawn)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stubs take every name for that of a switch
    return buffer.getvalue()


def _chosen(collected: Collected, most: int) -> list[Group]:
    trained = {id(group) for group in collected.groups}
    others = [group for group in collected.sampled if id(group) not in trained]
    return [*collected.groups, *others][:most]


def _numbers(traced: Traced, drawn: NDArray[np.bool_]) -> dict[str, NDArray[np.float16]]:
    """Of all tokens, of which some were `drawn`; the others, and those of groups that were not trained on, which come last, are
    NaN.
    """
    found = traced.numbers[:, traced.completion_mask].numpy()
    whole = np.full((len(found), len(drawn)), np.nan, dtype=np.float16)
    whole[:, drawn.nonzero()[0][: found.shape[1]]] = found
    return {name: values for name, values in zip(TRACED, whole, strict=True) if not np.isnan(values).all()}


def read_tokens(run: Path, step: int) -> dict[int, TokenRow]:
    """The tokens of a step, by line of its file of completions (from 0); empty where none are stored, or the file is damaged."""
    try:
        with zipfile.ZipFile(run / "rollouts" / f"step-{step:08d}.npz") as archive:
            arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
        texts = json.loads(arrays["vocabulary"].tobytes())
        vocabulary = dict(zip(arrays["vocabulary_ids"].tolist(), map(str, texts), strict=True))
        pieces = [vocabulary[i] for i in arrays["ids"].tolist()]
        ends = list(accumulate(arrays["length"].tolist(), initial=0))
        numbers = {name: arrays[name].astype(np.float32) for name in NUMBERS if name in arrays}
        if ends[-1] != len(pieces) or any(values.shape != (len(pieces),) for values in numbers.values()):
            return {}
        return {
            row: TokenRow(tuple(pieces[start:end]), {name: values[start:end] for name, values in numbers.items()})
            for row, (start, end) in zip(arrays["row"].tolist(), pairwise(ends), strict=True)
        }
    except DAMAGED:
        return {}


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return found
