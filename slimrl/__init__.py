"""SlimRL: reinforcement learning with verifiable rewards for small language models."""

from slimrl.machine.threads import settle_waiting

__version__ = "0.1.0"

settle_waiting()  # before any module of the package imports torch
