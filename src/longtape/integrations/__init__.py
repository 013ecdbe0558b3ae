"""Bridges to other people's libraries; each imports its library only when used."""
