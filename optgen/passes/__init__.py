"""Passes over the IR, each a function from program to program."""
