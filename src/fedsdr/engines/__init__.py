"""Engines decide where client halves run. They know models and data; algorithms do not."""
