"""Text from a model: batched, in slots, paged, token by token."""
