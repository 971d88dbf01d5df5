"""The life of a run: begun or resumed, measured, saved, stopped, finished.

What a step does is train.py's and sft.py's; who watches a run is known by protocols alone (listeners.py).
"""
