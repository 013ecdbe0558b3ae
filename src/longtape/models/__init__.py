"""Windows in, predictions out: embeddings, encoder, heads and losses, the linear skip, baselines."""
