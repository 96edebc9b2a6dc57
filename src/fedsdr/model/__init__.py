"""The model: a frozen base, the two LoRA streams on it, PEFT's file format, generation."""
