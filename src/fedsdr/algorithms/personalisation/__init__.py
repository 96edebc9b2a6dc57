"""Transforms that give every client a model of its own beside the global one."""
