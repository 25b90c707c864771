"""The oracle: records of every stage, comparisons of two, how much of a difference is rounding, and what the rest is."""
