"""Objects that a step works on: parameters in buckets, the shards of them that a process has, the numbers of a step."""
