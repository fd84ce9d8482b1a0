"""Training: the loop over epochs, one step, the optimizer, and the check of a state file."""
