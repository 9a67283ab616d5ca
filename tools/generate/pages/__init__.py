"""The pages of docs/ that are generated whole, each as a function that returns its text."""
