"""The oracle: records of every stage, comparisons of two, and how much of a difference is rounding."""
