"""Which parts of a LoRA adapter are trained and shared, and how the shared parts are averaged.

Each is a transform: it gives an algorithm of this federation another notion of mean.
"""
