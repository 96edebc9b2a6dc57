"""Stage 5, evaluate: how good a global or personal model is, and how sure we are of it."""
