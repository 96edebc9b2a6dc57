"""LLM as a judge: a run's models answer questions, and another model compares the answers."""
