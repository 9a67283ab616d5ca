"""What a release consists of: the files of `make dist`, and the checks before a tag is published."""
