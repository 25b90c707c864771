"""The oracle: records of every stage, comparisons of two, what of a difference is rounding, what is a mistake."""
