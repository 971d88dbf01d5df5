"""The compiled parts of a decode step against the same in torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slimrl.kernels import native
from slimrl.kernels.decode import (
    decode_attention,
    few_rows,
    key_blocks,
    recorded_decode_attention,
    recorded_few_rows,
)
from slimrl.kernels.native import has_kernels, lanes
from slimrl.model.attention import Prefill
from slimrl.model.packing import pack
from slimrl.rollout.cache import Cache


@pytest.fixture
def anew() -> Iterator[None]:
    """What is compiled is looked for again, in the test and after it."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One source, not optimized: for tests of where the compiled code lies, when one of them has compiled it as it is."""
    monkeypatch.setattr(native, "SOURCES", native.SOURCES[:1])
    monkeypatch.setattr(native, "OPTIONS", ("-O0", *(option for option in native.OPTIONS if option != "-O3")))


compiled = pytest.mark.skipif(not lanes(), reason="no compiler, or no AVX2")


def expected(
    query: Tensor, keys: Tensor, values: Tensor, prompts: tuple[Tensor, Tensor], prompt: int, length: int, age: int,
    time: int, window: int, scaling: float,
) -> Tensor:  # fmt: skip
    """One row, its keys laid out in their order: [H, 1, d]."""
    columns = [(time - age + i) % keys.shape[1] for i in range(age + 1)]
    k, v = (
        torch.cat([given[prompt, :, :length], own[:, columns]], dim=1)
        for given, own in zip(prompts, (keys, values), strict=True)
    )
    if window:
        k, v = k[:, -window:], v[:, -window:]
    group = len(query) // len(k)
    k, v = k.repeat_interleave(group, 0).double(), v.repeat_interleave(group, 0).double()
    weights = (query.double() @ k.transpose(1, 2) * scaling).softmax(-1)
    return (weights @ v).float()


@pytest.mark.skipif(
    shutil.which("g++") is None or " avx2 " not in native._processor() or "CXX" in os.environ,
    reason="no g++, or no AVX2",
)
def test_where_it_can_be_compiled_it_is() -> None:
    """Else everything else here is skipped, and nobody sees why."""
    assert native.problem() == ""
    assert lanes() in (8, 16)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3, 8, 9])
@pytest.mark.parametrize("vectors", [1, 2, 5])
@pytest.mark.parametrize(("time", "window"), [(0, 0), (20, 0), (60, 0), (60, 7), (60, 21), (60, 1)])
def test_attention_sees_what_it_should(group: int, vectors: int, time: int, window: int, dtype: torch.dtype) -> None:
    if not has_kernels(dtype):
        pytest.skip("the processor does not multiply bfloat16")
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(time + window)
    heads, columns, width, places, n = 2, 40, vectors * lanes(), 33, 11
    # what no row may see is not a number
    keys, values = torch.full((2, n + 1, heads, columns, width), float("nan"), dtype=dtype)
    prompts = tuple(torch.full((2, 3, heads, places, width), float("nan"), dtype=dtype))
    lengths = torch.tensor([places, 1, 16, 33, 17, 32, 2, 3, 4, 5, 6])
    prompt = torch.arange(n) % 3
    ages = torch.tensor([min(time, a) for a in (0, 39, 1, 2, 15, 16, 17, 30, 31, 32, 33)])
    for which, length in zip(prompt.tolist(), lengths.tolist(), strict=True):
        for store in prompts:
            fresh = torch.isnan(store[which, :, :length])
            store[which, :, :length][fresh] = torch.randn(int(fresh.sum())).to(dtype)
    for row, age in enumerate(ages.tolist()):
        for back in range(1, age + 1):
            keys[row, :, (time - back) % columns] = torch.randn(heads, width)
            values[row, :, (time - back) % columns] = torch.randn(heads, width)
    query = torch.randn(n, heads * group, 1, width).to(dtype)
    key, value = torch.randn(2, n, heads, 1, width).to(dtype)
    scaling = width**-0.5
    given = (key_blocks(prompts[0]), prompts[1])
    found = decode_attention(query, key, value, keys, values, *given, prompt, lengths, ages, time, window, scaling)
    torch.random.set_rng_state(torch_state)
    assert torch.equal(keys[:n, :, time % columns], key[:, :, 0])
    assert torch.equal(values[:n, :, time % columns], value[:, :, 0])
    for row in range(n):
        wanted = expected(
            query[row], keys[row], values[row], prompts, int(prompt[row]), int(lengths[row]), int(ages[row]), time,
            window, scaling,
        )  # fmt: skip
        digit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps  # a result is rounded by half of it
        torch.testing.assert_close(found[row].float(), wanted, atol=2e-6, rtol=1e-5 + digit / 2)


@compiled
@pytest.mark.parametrize("group", [1, 2, 7, 25])
@pytest.mark.parametrize("window", [0, 300, 20])
@pytest.mark.usefixtures("_threads")
def test_a_row_is_the_same_in_any_company(group: int, window: int, dtype: torch.dtype) -> None:
    """Bit for bit: rows of three prompts, of which one has no other row, together, in another order, and each alone."""
    generator = torch.Generator().manual_seed(group)
    heads, columns, width, places, n = 2, 24, 3 * lanes(), 333, 31

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    keys, values = draw(n, heads, columns, width), draw(n, heads, columns, width)
    prompts = (key_blocks(draw(3, heads, places, width)), draw(3, heads, places, width))
    step = [draw(n, heads * group, 1, width), draw(n, heads, 1, width), draw(n, heads, 1, width)]
    prompt = torch.tensor([1, *[0, 2] * 15])
    lengths, ages = torch.tensor([40, 333, 200])[prompt], torch.arange(n) % columns

    def attend(rows: Tensor) -> Tensor:
        stores = keys[rows].clone(), values[rows].clone()
        numbers = prompt[rows], lengths[rows], ages[rows]
        return decode_attention(*(part[rows] for part in step), *stores, *prompts, *numbers, 30, window, width**-0.5)

    together, order = attend(torch.arange(n)), torch.randperm(n, generator=generator)
    assert torch.equal(attend(order), together[order])
    assert all(torch.equal(attend(torch.tensor([row])), together[row : row + 1]) for row in range(n))


@compiled
def test_blocks_of_keys_hold_numbers_of_all_lanes_side_by_side(dtype: torch.dtype) -> None:
    keys = torch.arange(2.0 * (lanes() + 1)).view(1, 1, lanes() + 1, 2).to(dtype)
    found = key_blocks(keys).float()
    assert found.shape == (1, 1, 2, 2 * lanes())
    whole = torch.arange(2.0 * lanes())
    wanted = whole if dtype == torch.bfloat16 else torch.cat([whole[::2], whole[1::2]])
    assert torch.equal(found[0, 0, 0], wanted.to(dtype).float())
    assert sorted(found[0, 0, 1].tolist()) == [0.0] * (2 * lanes() - 2) + [2.0 * lanes(), 2.0 * lanes() + 1]


@compiled
def test_weights_span_many_orders_of_magnitude() -> None:
    """The exponential: exact where it matters, 0 where it does not."""
    width = lanes()
    keys, values = torch.zeros(2, 1, 1, 64, width)
    scores = torch.linspace(-200, 5, 64)
    keys[0, 0, :, 0] = scores
    values[0, 0, :, 0] = torch.arange(64.0)
    query = torch.zeros(1, 1, 1, width)
    query[..., 0] = 1
    zero, age = torch.zeros(1, dtype=torch.long), torch.tensor([63])
    empty = torch.zeros(1, 1, 1, width)
    found = decode_attention(
        query,
        keys[:, :, 63:].clone(),
        values[:, :, 63:].clone(),
        keys,
        values,
        key_blocks(empty),
        empty,
        zero,
        zero,
        age,
        63,
        0,
        1.0,
    )
    wanted = (scores.double().softmax(0) * torch.arange(64.0)).sum()
    torch.testing.assert_close(found[0, 0, 0, 0].double(), wanted, atol=0, rtol=1e-6)


@compiled
def test_what_is_not_a_number_stays_so() -> None:
    width = lanes()
    keys, values = torch.zeros(2, 1, 1, 8, width)
    keys[0, 0, 1] = float("nan")
    zero, age = torch.zeros(1, dtype=torch.long), torch.tensor([3])
    one, empty = torch.ones(1, 1, 1, width), torch.zeros(1, 1, 1, width)
    found = decode_attention(one, one, one, keys, values, key_blocks(empty), empty, zero, zero, age, 3, 0, 1.0)
    assert found.isnan().all()


@compiled
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_knows_both() -> None:
    torch.library.opcheck(recorded_few_rows, (torch.randn(12, 8), torch.randn(5, 8), torch.randn(12)))
    torch.library.opcheck(recorded_few_rows, (torch.randn(12, 8), torch.randn(5, 8), None))
    width, n = lanes(), 2
    stores = [torch.zeros(n, 1, 4, width) for _ in range(4)]
    stores[2] = key_blocks(stores[2])
    step = [torch.randn(n, 1, 1, width) for _ in range(3)]
    numbers = [torch.tensor([0, 1]), torch.tensor([2, 4]), torch.tensor([0, 0])]
    torch.library.opcheck(recorded_decode_attention, (*step, *stores, *numbers, 1, 0, 0.5))


@compiled
@pytest.mark.usefixtures("anew")
def test_one_compilation_serves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert lanes()
    made = list((tmp_path / "slimrl").iterdir())
    assert [path.suffix for path in made] == [".so"]
    written = made[0].stat().st_mtime_ns
    native._library.cache_clear()
    assert lanes()
    assert made[0].stat().st_mtime_ns == written


@compiled
@pytest.mark.usefixtures("anew", "quick")
@pytest.mark.parametrize("how", ["a file", "open to others", "no home"])
def test_a_folder_that_cannot_be_used_does_not_matter(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "slimrl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if how == "a file":
        folder.write_text("")
    elif how == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert lanes()
    assert not folder.is_dir() or not list(folder.iterdir())


@pytest.mark.usefixtures("anew")
def test_a_compiler_that_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"{broken} -O1")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert lanes() == 0
    assert "does not compile it" in native.problem()
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._library.cache_clear()
    assert native.problem() == "there is no no-such-compiler"
    monkeypatch.setattr("platform.machine", lambda: "arm64")  # where no compiler would help
    assert native.problem() == ""


@compiled
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_other_defaults_of_torch_do_not_matter(default: torch.dtype) -> None:
    weight, x = torch.randn(12, 8), torch.randn(5, 8)
    torch.set_default_dtype(default)
    try:
        found = few_rows(weight, x, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x @ weight.T)


@compiled
def test_only_a_cache_of_one_width_is_read_by_it() -> None:
    three = torch.tensor([3])
    prompt = pack(torch.zeros(1, 3, dtype=torch.long), three, three, torch.tensor([0]), device=torch.device("cpu"))

    def cache(key_width: int, value_width: int, *, dtype: torch.dtype = torch.float32, recorded: bool = False) -> Cache:
        keys, values = {0: torch.zeros(2, 3, key_width, dtype=dtype)}, {0: torch.zeros(2, 3, value_width)}
        made = Cache(prompts=1, width=3, slots=2, columns=4, recorded=recorded)
        made.fill(0, Prefill(prompt.plan, keys, values), prompt.places)
        return made

    width = lanes()
    assert cache(width, width).native
    assert not cache(2 * width, width).native
    assert not cache(width + 1, width + 1).native
    assert not cache(width, width, dtype=torch.bfloat16).native
    recorded = cache(width, width, recorded=True)
    assert not recorded.native
    assert not recorded.keys[0].any()  # its masks multiply by 0, which must not meet what is no number
