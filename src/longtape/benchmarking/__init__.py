"""What things cost on this machine, beside peers: attention, the store, bars from trades."""
