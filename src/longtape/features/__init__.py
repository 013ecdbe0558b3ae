"""What a model may see: expressions, targets, scaling, windows, splits, marks of market time."""
