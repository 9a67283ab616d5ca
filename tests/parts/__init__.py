"""The real programs that tests and the demo run against: found or built, started, stopped."""
