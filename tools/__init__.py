"""Programs for work on this repository that are neither shipped nor tests."""
