"""The recipe: what it may say, how it is read, which methods it names, how they are built."""
