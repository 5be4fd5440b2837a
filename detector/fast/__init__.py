"""Faster forms of a detector's operations, with the same results up to rounding."""
