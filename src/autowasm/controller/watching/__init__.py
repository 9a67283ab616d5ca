"""What is followed of the cluster, and what a change there wakes."""
