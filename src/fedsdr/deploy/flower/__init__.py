"""Flower as the line between server and clients."""
