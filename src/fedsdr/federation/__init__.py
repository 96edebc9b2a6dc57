"""The server half of training: the round loop, its checkpoint, engines in this process."""
