"""Faults that a test switches on and off, between real parts or in the environment of a real process: connections, names, time, load."""
