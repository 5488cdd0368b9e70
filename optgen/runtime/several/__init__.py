"""One optimizer of several rules: its parts, which rule a parameter has, and what models are made of."""
