"""The process and its surroundings: ranks, signals, console, files that are whole or not there."""
