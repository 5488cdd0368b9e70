"""The IR: equations parsed to typed nodes, the kinds of their values, and what holds under which settings."""
