"""The words that settings take, and the names of what a run leaves, each set once: the settings accept them, and algorithm,
learner, tasks and rewards act on them.

This module imports nothing of the package. The surrogates are not here: their names and properties are in
`slimrl/config/algorithm.py`, next to the parameters that a new one brings, and `slimrl/algorithm/loss.py` has their functions.
"""

from typing import Literal

# the task
Checker = Literal["numeric", "symbolic", "exact", "choice", "regex", "tests", "none"]
Template = Literal["auto", "chat", "plain"]
Answers = Literal["needed", "all_or_none", "unneeded"]
"""Of a user's own rows: every row needs one; all may lack one, as where accuracy is measured if it can be; any row may."""

# rewards
CompletionForm = Literal["auto", "text", "messages"]

# sampling
Engine = Literal["builtin", "vllm"]
BUILT_IN_MODELS = ("builtin", "builtin-tools")
"""Values of `model.path` for models that come with SlimRL: of one turn, and of `calculator` and `guess`."""

# the sandbox
Isolated = Literal["bubblewrap", "namespaces", "limits"]
Isolation = Literal["auto", Isolated]

# advantages
GroupBaseline = Literal["group_mean", "leave_one_out", "none"]
Baseline = Literal[GroupBaseline, "critic"]
Scale = Literal["group", "batch", "none", "mean"]
Credit = Literal["episode", "turn"]

# the loss
Aggregation = Literal["sequence_mean", "token_mean", "prompt_token_mean", "fixed_length", "microbatch_token_mean"]
SampledKl = Literal["k1", "k2", "k3", "k3_k2"]
"""KL kinds that need only the sampled token's log-probabilities."""
FullKl = Literal["reverse", "forward", "gkl"]
"""KL kinds over the whole vocabulary."""
KlEstimator = Literal[SampledKl, FullKl]
GklWeights = Literal["policy", "reference", "global"]
Correction = Literal["truncate", "mask"]
Importance = Literal["off", Correction]
ImportanceLevel = Literal["token", "sequence"]

# the choice of groups
Selection = Literal["off", "filter", "refill", "replace"]
Signal = Literal["correct", "reward"]

# the optimizer
Schedule = Literal["constant", "linear", "cosine"]

# the run
Parallel = Literal["ddp", "fsdp"]
TokenLog = Literal["off", "samples", "all"]
Tracker = Literal["wandb", "tensorboard", "trackio", "mlflow"]
FINAL, ADAPTER, CHECKPOINTS = "final", "adapter", "checkpoints"
"""Folders in that of a run: the model that it trained, with an adapter merged, the adapter alone, and states to resume from."""
