"""The settings of the sandbox, in which programs that a model wrote are run."""

from typing import Annotated, Literal

from pydantic import Field

from slimrl.config.base import Count, Positive, Section
from slimrl.terms import Isolation


class SandboxConfig(Section):
    prefix = "sandbox"

    isolation: Isolation = "auto"
    """The means by which a program is shut in (docs/sandbox.md): `bubblewrap`, `namespaces` (the kernel's, with a filter of system
    calls), or `limits`, which guarantees nothing about files and the network. `auto`: the first of `bubblewrap` and `namespaces`
    that works here, and an error if none does."""
    seconds: Positive = 15.0
    """Seconds by the clock that a program may take, sleep included."""
    cpu_seconds: Count = 5
    """Seconds of computing that a program may take. Verdicts do not depend on the load of the machine where this limit comes
    first."""
    memory: Annotated[int, Field(ge=64)] = 512
    """MiB of addresses that a process of a program may take, Python's own (about 20) included."""
    scratch: Count = 16
    """MiB of files that a program may have."""
    processes: Count = 1
    """Processes of a program at most. With 1 it may have threads, and with more each thread counts as a process."""
    output: Count = 64
    """KiB that a program may write to stdout and stderr together before it is ended."""
    workers: Count | Literal["auto"] = "auto"
    """Programs that run at the same time; `auto`: one for each core."""
