"""Backends: one renderer a target, from plans to text."""
