"""Flower's SuperNode, as a process that ends when its main thread does.

    python -m fedsdr.deploy.flower.supernode --superlink ...

A SuperNode that loses its network in the middle of a TLS handshake gives up, but its process stays
(flwr 1.41): it waits for a thread of its own that never ends. Then nothing would start it again.
"""

import os
import sys
import traceback
from importlib.metadata import entry_points


def main() -> None:
    """Run `flower-supernode` with this process's arguments; does not return."""
    [command] = entry_points(group="console_scripts", name="flower-supernode")
    status = 1
    try:
        command.load()()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
