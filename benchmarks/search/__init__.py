"""Searches replayed on recorded trainings: the engine against what can be put together from public parts."""
