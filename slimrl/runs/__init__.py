"""The run directory: the only output of a run, and the only interface to its analysis.

This room does not know how a run trains or how its records are shown.
"""
