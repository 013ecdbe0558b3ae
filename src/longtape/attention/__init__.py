"""Nine interchangeable attention mechanisms: tensors in, tensors out. Stands on torch alone.

`build_attention(name, d_model=…, n_heads=…, **options)` gives an `nn.Module`; `layer.reference` is its definition.
"""

from longtape.attention.base import Attention, AttentionConfig, Capabilities, attention_weights
from longtape.attention.registry import MECHANISMS, build_attention, mechanism_class

__all__ = [
    "MECHANISMS",
    "Attention",
    "AttentionConfig",
    "Capabilities",
    "attention_weights",
    "build_attention",
    "mechanism_class",
]
