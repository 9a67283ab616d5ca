"""Stand-ins for what no real part can be made to do: servers, clocks, a volume, and implementations of our own interfaces that a test controls."""
