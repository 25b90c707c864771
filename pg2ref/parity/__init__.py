"""Ports are checked here: what went wrong elsewhere, one forward pass cut into blocks, and the name of the mistake."""
