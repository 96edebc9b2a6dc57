"""What a run will take, worked out before any weight is loaded."""
