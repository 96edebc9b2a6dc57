"""The folders that a deployment is made of."""
