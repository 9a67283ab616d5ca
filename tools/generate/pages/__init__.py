"""The pages of docs/ that are completely generated, each as a function that returns its text."""
