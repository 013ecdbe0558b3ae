"""Thin commands over the functions of the other rooms."""
