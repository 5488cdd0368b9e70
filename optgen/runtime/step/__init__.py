"""A step: which target serves, what is prepared, which passes run, what processes add up."""
