"""Stage 3, train: the client half: local training, cohorts, the loss, and the client's store."""
