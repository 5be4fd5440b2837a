"""What scripts/datasets.py does: download, inspect, validate, convert and split datasets."""
