"""Diagnostics: how far clients lie apart, and what rewriting does to it and to the responses.

Pure functions: of texts (`text`, `divergence`, `maps`, `clusters`, `paired`), and of a model and
adapters (`gradients`, `transfer`). None of them trains.
"""
