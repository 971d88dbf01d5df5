"""SlimRL in Python: train, sft, evaluate, compare, study and sample, and what they return.

The functions build the settings that the command line builds from files, and start the same runs. Torch is imported by what needs
it, so that importing the package stays fast.
"""
