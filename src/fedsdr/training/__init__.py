"""Local training, the round loop, and what makes a run resumable."""
