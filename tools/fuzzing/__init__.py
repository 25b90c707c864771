"""Hostile inputs for the readers: how they are made (one file a kind of input), and what a reader may do with them."""
