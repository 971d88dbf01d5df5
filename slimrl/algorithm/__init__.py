"""Pure functions on tensors and plain numbers: groups, advantages, weights, surrogate, KL."""
