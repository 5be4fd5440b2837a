"""Faster forms of a detector's operations, with the numbers of the plain ones (up to rounding)."""
