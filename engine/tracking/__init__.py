"""What a run reports while it trains: log lines, metrics.jsonl, TensorBoard and other trackers."""
