"""Records of a run: every stage, what it was made from, and how much of it rounding would change."""
