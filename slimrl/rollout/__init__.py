"""The rollout engine: cache, draws, scheduling."""
