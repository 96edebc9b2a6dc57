"""Diagnostics: heterogeneity of clients, and the effect of rewriting on it and on the responses.

Pure functions of texts (`text`, `divergence`, `maps`), of records (`data_quality`), and of a model
with adapters (`gradients`, `transfer`). None of them trains.
"""
