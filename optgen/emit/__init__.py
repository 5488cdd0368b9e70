"""Conversion of plans to files: templates are rendered here, and the generated package is written or compared."""
