"""Stand-ins for what no real part can be made to do: servers, clocks, a volume and seams that follow the test."""
