"""A reviewer's run against the paper's, claim by claim, and two runs of one machine against each other."""
