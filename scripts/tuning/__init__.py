"""Measurements for choosing config values."""
