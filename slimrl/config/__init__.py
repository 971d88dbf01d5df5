"""Every setting, once: what it is, how it is read from YAML and `section.key=value`, and what is wrong with it in a sentence.

This room knows nothing of torch, models or runs.
"""
