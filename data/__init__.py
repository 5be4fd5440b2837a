"""Annotations and image files in, batches out."""
