"""The Python API: what `import fedsdr` offers, and what each command of the command line calls."""

import logging

# It gives advice when imported, which is when the API is first used.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
