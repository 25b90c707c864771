"""The oracle: records of every stage, comparisons of two, what of a difference is rounding, what is a mistake."""

from pg2ref.parity.check import assert_trace_close

__all__ = ["assert_trace_close"]
