"""Tracking of a run: log lines, metrics.jsonl, TensorBoard and other trackers."""
