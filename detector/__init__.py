"""Detectors: torchvision's models with our losses inside."""
