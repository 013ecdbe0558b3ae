"""Predictions and intervals from a fitted model."""
