"""Colours of static pictures. The page has its own, by role, so that they follow light and dark mode."""

INK, MUTED, ACCENT, WARN = "#1b2733", "#8a97a5", "#0b6bcb", "#c0392b"
PALETTE = (ACCENT, "#7f8c8d", "#d68910", "#148f77", "#884ea0", "#a04000")
