"""Counts the files of `src` that three paths pass through: `python -m tests.codepaths`."""
