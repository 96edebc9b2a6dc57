"""Across organisations: messages, the client's own trainer, and the server that drives them."""
