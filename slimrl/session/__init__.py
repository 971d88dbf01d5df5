"""The life of a run: begun or resumed, measured, saved, stopped, finished.

<<<<<<< HEAD
It does not know what a step does (train.py, sft.py), and it knows those who watch a run by protocols alone
(slimrl/session/listeners.py).
=======
This room does not know what a step does: `slimrl/train.py` and `slimrl/sft.py` do. It knows the listeners of a run by their
protocols alone.
>>>>>>> f92cbc3e33c905ea6f93bdfa0cd23a7dc820c0f5
"""
