"""Engines, which compute a step: one for each target."""
