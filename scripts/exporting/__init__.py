"""Trained detectors as files that other programs run."""
