"""Scenes from whole numbers alone, so that a seed gives the same pixels everywhere."""
