"""fedsdr: federated fine-tuning of language models with self-distillation and rectification."""

__version__ = "0.1.0"
