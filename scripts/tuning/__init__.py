"""What to set a config to, measured."""
