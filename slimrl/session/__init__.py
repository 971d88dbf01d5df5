"""The life of a run: begun or resumed, measured, saved, stopped, finished.

This room does not know what a step does: `slimrl/train.py` and `slimrl/sft.py` do. It knows the listeners of a run by their
protocols alone.
"""
