"""LLM as a judge: our models answer questions, another model says which answer is better."""
