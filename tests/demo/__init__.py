"""The demo (`make demo`): a guided run of the real parts in `tests/parts`."""
