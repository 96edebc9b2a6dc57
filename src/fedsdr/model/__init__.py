"""The model: a frozen base, the two LoRA streams on it, PEFT's file format, generation."""

import logging

# PEFT imports it where it is installed, and it gives advice when imported: in any process, before
# a program can choose what it prints.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
