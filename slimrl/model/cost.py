"""The cost of a token in operations and bytes, counted on the module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from slimrl.model.policy import Policy


@dataclass(frozen=True)
class Cost:
    """Counts of one policy; multiply-adds are two operations."""

    body: int
    """Parameters of the layers' matrices."""
    head: int
    """Parameters of the output embedding."""
    weight_bytes: int
    """All parameters, tied ones once."""
    pair_flops: int
    """Operations of one query against one key, over all layers and heads."""
    cache_bytes: int
    """Keys and values of one token, over all layers."""

    def forward(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations of a forward pass: tokens through the layers, targets through the head, query-key pairs."""
        return 2.0 * self.body * tokens + 2.0 * self.head * targets + self.pair_flops * pairs


def cost_of(policy: Policy) -> Cost:
    """Count a loaded policy."""
    linear = [module for module in policy.trunk.modules() if isinstance(module, nn.Linear)]
    weight = policy.head.projection.weight
    assert isinstance(weight, Tensor)
    return Cost(
        body=sum(module.weight.numel() for module in linear),
        head=weight.numel(),
        weight_bytes=sum(p.numel() * p.element_size() for p in policy.model.parameters()),
        pair_flops=sum(2 * layer.heads * (layer.key_width + layer.value_width) for layer in policy.attention),
        cache_bytes=policy.model.dtype.itemsize
        * sum(layer.kv_heads * (layer.key_width + layer.value_width) for layer in policy.attention),
    )
