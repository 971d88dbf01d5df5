"""The policy: a causal language model of transformers, its prompts, and how it is called (attention hook, packed rows, head).

This room knows nothing of sampling, rewards, losses or optimizers.
"""
