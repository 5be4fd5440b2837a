"""Weights to start from: files and downloads, sorted into a detector."""
