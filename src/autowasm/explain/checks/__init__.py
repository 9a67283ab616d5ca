"""One file for each step from a source to a Pod; each check is a pure function of the facts."""
