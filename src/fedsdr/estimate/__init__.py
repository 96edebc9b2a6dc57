"""Estimates of a run's cost (compute, memory, traffic), before any weight is loaded."""
