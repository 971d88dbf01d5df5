"""What the machine is and says: its limits and threads, signals and time, child processes.

This room knows nothing of reinforcement learning.
"""
