"""From a program to passes over memory, and what they cost."""
