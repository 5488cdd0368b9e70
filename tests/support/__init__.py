"""Helpers of tests in several folders: the classes and their settings, targets, devices, small models, specs."""
