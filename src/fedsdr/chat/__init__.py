"""Talking to the models of a finished run."""
