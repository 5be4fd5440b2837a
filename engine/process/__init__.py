"""The process and its environment: ranks, signals, console and atomic files."""
