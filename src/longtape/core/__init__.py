"""Below all rooms: errors, clock, instruments, atomic files, registries, progress."""
