"""From the groups of a step to new weights.

This room knows nothing of run directories, displays or tasks.
"""
