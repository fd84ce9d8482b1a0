"""Testing a network: inference over a set, and the measuring protocol (`metrics.py`)."""
