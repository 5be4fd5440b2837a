"""The training engine: config, training loop, checkpoints, evaluation and its scores."""
