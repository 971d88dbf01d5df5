"""Speed and memory of this machine, measured instead of looked up."""

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
LARGE_BLOCK = 2**20
GEMM_SIZE = {"cpu": 1536, "cuda": 8192}
READ_BYTES = {"cpu": 2**27, "cuda": 2**30}
ALLOCATOR_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and that of torch's layer over it; both are read at the first use."""
KEPT_KERNELS = 64
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of torch for a CPU, and of CUDA outside of torch's own allocator."""


@dataclass(frozen=True)
class Limits:
    """The two limits of a model's speed, as torch reaches them on this machine."""

    flops: float
    """Operations per second of a large matrix product in the module's precision."""
    bandwidth: float
    """Bytes per second of reading a large array."""


@torch.inference_mode()
def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of a few tries of each limit; takes about a second."""
    size = GEMM_SIZE[device.type]
    square = torch.ones((size, size), device=device, dtype=dtype)
    array = torch.ones(READ_BYTES[device.type] // 4, device=device)
    return Limits(
        flops=2.0 * size**3 / _fastest(lambda: square @ square, device),
        bandwidth=4.0 * array.numel() / _fastest(array.sum, device),
    )


def _fastest(work: Callable[[], object], device: torch.device, tries: int = 6) -> float:
    seconds = []
    for _ in range(tries):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take, within the container's limit; ranks of a run on one host share its memory."""
    if device.type == "cuda":
        # What torch holds and does not use is free for it too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    free = [_field("/proc/meminfo", "MemAvailable", 2**63)]
    for limit, usage in _container():
        free.append(limit - int(usage.read_text()) + _file_cache(usage.with_name("memory.stat")))
    return max(0, min(free)) // _ranks_of_host()


def total_memory(device: torch.device) -> int:
    """Bytes of the device in all, within the container's limit; ranks of a run on one host share its memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return min([_field("/proc/meminfo", "MemTotal", 2**63), *(limit for limit, _ in _container())]) // _ranks_of_host()


def _ranks_of_host() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _container() -> Iterator[tuple[int, Path]]:
    """The container's limits of memory in bytes, each with the file that says how many bytes it uses."""
    for limit, usage in CGROUPS:
        text = Path(limit).read_text().strip() if Path(limit).is_file() else "max"
        if text != "max":
            yield int(text), Path(usage)


def used_memory(device: torch.device) -> int:
    """Bytes held now: by torch on a GPU, by the whole process on a CPU (0 if the system does not tell)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _field("/proc/self/status", "VmRSS", 0)


def peak_memory(device: torch.device) -> int:
    """The most bytes held since the start of the process, counted as in `used_memory`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _field("/proc/self/status", "VmHWM", 0)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error says that the device or this process has no memory left."""
    told = isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in NO_MEMORY)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or told


def blocks_can_be_settled() -> bool:
    """True where `settle_freed_blocks` acts: with glibc, unless the user has set one of ALLOCATOR_SETTINGS (a preloaded library
    may be another allocator).
    """
    return platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in ALLOCATOR_SETTINGS)


def settle_freed_blocks(*, given_back: bool) -> None:
    """Let the C library keep the blocks that a step frees for the next, or return those of a MiB or more to the system.

    The system hands out memory in pages that it clears first. By default glibc returns a part of what is freed, and a step of
    135 million parameters in bfloat16 then takes a quarter longer than with blocks that are kept. Kept blocks lie between
    others in use, and not all fit the next request: 0.3 of 4 GiB, and 1.3 of 9.5 GiB with 494 million parameters.
    """
    if not blocks_can_be_settled():
        return
    library = ctypes.CDLL(None)
    # Before version 2.35 glibc takes no more than 32 MiB.
    for size in [LARGE_BLOCK] if given_back else [2**30, 2**25]:
        if library.mallopt(M_MMAP_THRESHOLD, size):
            break
    library.mallopt(M_TRIM_THRESHOLD, LARGE_BLOCK if given_back else 2**31 - 1)


def in_memory(folder: Path) -> bool:
    """True where the files of a folder, which need not exist yet, are held in memory: a tmpfs."""
    mounts = Path("/proc/self/mounts")
    if not mounts.is_file():
        return False
    kinds = {line.split()[1]: line.split()[2] for line in mounts.read_text().splitlines()}
    path = folder.resolve()
    nearest = next((str(place) for place in (path, *path.parents) if str(place) in kinds), "/")
    return kinds.get(nearest) in ("tmpfs", "ramfs")


def return_freed_blocks() -> None:
    """Return to the system all memory that was freed, however glibc is set to treat it; nothing with another C library."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def compiles_kernels() -> bool:
    """True where torch leaves products on the CPU to oneDNN, which it does from AVX-512 on."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def bound_kernel_caches() -> None:
    """Let oneDNN keep few of the kernels that it compiles; call this before the first product in a narrow type on a CPU.

    It compiles a kernel for every shape and keeps 1,024 in each of two caches. The number of rows of decode steps changes
    every few steps, so the caches grow to half a GiB with a model of a million parameters, and their kernels are hardly
    used again: with 64 kernels a run takes no more CPU time (5.3 s against 5.7 s). A capacity that the user has set stays.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KEPT_KERNELS))


def _file_cache(path: Path) -> int:
    """Bytes of a container's file cache that the kernel frees on demand."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = dict(line.split()[:2] for line in lines)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _field(path: str, name: str, default: int) -> int:
    """The line `name: N kB` of a proc file, in bytes; the default on systems without it."""
    lines = Path(path).read_text().splitlines() if Path(path).is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), default)
