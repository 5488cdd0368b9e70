"""What computes a step: one engine a target."""
