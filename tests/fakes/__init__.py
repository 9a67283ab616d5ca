"""Fakes for behaviour that real parts cannot be made to show: servers, clocks, a volume, and test-controlled implementations of our interfaces."""
