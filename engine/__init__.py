"""What runs: config, training loop, checkpoints, evaluation and its scores."""
