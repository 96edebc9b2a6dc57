"""Transforms that give every client a model of its own in addition to the global one."""
