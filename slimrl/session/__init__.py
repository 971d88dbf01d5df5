"""The life of a run: begun or resumed, measured, saved, stopped, finished.

It does not know what a step does (train.py, sft.py), and it knows those who watch a run by protocols alone
(slimrl/session/listeners.py).
"""
