"""The policy: a transformers causal LM, and how we call it (attention hook, chunked head, float32 masters)."""
