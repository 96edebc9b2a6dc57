"""What each section of a recipe may say: keys, types, defaults, limits."""
