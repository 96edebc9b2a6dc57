"""The sections of a recipe: each one class, each default stated here and nowhere else."""
