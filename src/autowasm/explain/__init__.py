"""What is right and wrong about a live AutoWasm, and about one that is not applied yet: facts, then pure checks."""
