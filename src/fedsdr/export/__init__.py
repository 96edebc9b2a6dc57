"""A trained model as a folder for others: a PEFT adapter or merged weights, with a model card."""
