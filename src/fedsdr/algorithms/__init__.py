"""The algorithms: one idea a file, each holding both its client and its server half."""
