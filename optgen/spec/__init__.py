"""Specs: the models, the YAML reader that knows where everything stands, and what can be checked without equations."""
