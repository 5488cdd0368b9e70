"""Checkpoints: what they say, whether they fit, and their forms."""
