"""Below all rooms: errors, clock and calendars, instruments, atomic files, registries, progress."""
