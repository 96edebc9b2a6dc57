"""Server halves that a few hostile or broken clients cannot steer, as transforms."""
