"""Everything before the first step: model and task, memory plan, rewards, the doctor's probe, and settings without effect.

This room does not know what a step does, nor how a run is recorded.
"""
