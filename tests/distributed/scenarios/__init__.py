"""Scenarios of several processes: rules, engines and checkpoints of parts, held against one process.

A module has a dict `SCENARIOS`: by the number of processes and a name, what each of them computes (see `world`).
`listing` tells which there are, `run` runs them. Each is a test of tests/distributed/test_processes.py.
"""
