"""The states of a parameter: which exist, how they are stored, in which codec."""
