"""Figures and the HTML page: one file that opens offline."""
