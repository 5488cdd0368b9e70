"""Conversion of a program to passes over memory, and their costs."""
