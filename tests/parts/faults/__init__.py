"""Faults that a test switches on and off, between real parts or in what a real process sees: connections, names, time, load."""
