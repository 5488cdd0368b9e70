"""What users set: which settings there are, what they may be, how states are stored."""
