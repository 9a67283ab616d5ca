"""The files of a release (`make dist`), and the checks before a tag is published."""
