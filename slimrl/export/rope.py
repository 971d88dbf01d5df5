"""Rotary positions as llama.cpp has them: a base, a factor on all frequencies, or a factor for each (Llama 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def scaling_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rope parameters of full attention in a config.json, of transformers 5 or before."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found: Mapping[str, Any] = rope.get("full_attention", rope)
    return found


def plain_rope(config: Mapping[str, Any]) -> bool:
    """True for positions that a GGUF of SlimRL's can say."""
    kind = scaling_of(config).get("rope_type", "default")
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    return kind in ("default", "linear", "llama3") and local.get("rope_type", "default") == "default"


def frequency_factors(config: Mapping[str, Any], head_width: int) -> NDArray[np.float32] | None:
    """[head_width / 2] divisors of the frequencies for Llama 3's positions; None for others."""
    scaling = scaling_of(config)
    if scaling.get("rope_type") != "llama3":
        return None
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    found = []
    for i in range(0, head_width, 2):
        length = 2 * math.pi * base ** (i / head_width)
        smooth = (context / length - low) / (high - low)
        # short waves stay, long ones are stretched, and between them the frequency is mixed
        found.append(1 / ((1 - min(max(smooth, 0.0), 1.0)) / factor + min(max(smooth, 0.0), 1.0)))
    return np.array(found, dtype=np.float32)
