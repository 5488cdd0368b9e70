"""Today's results of every class, as hashes: what a change of generated code must leave as it is."""
