"""Tools of scripts/datasets.py: download, inspect, validate, convert and split datasets."""
