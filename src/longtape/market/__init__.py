"""The outside world: sources, the store, quality, alignment, bars from trades, order books."""
