"""The pattern mechanisms on CUDA: compiled FlexAttention with block masks made from lists of blocks."""
