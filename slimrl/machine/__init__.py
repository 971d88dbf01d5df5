"""The machine: its limits and threads, signals and time, and child processes.

This room knows nothing of reinforcement learning.
"""
