"""The differentiable operators under the mechanisms: compiled loops on a CPU, FlexAttention or tensors elsewhere."""
