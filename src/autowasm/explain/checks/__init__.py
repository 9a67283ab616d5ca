"""One file for each link of the way from a source to a Pod; each check is a pure function of the facts."""
