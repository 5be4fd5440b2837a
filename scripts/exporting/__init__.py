"""Export of trained detectors to files that other programs can run."""
