"""What a client began a method with: its state, kept from round to round, is of no other model and
of no other data."""

from pathlib import Path
from typing import Final

from fedsdr.core import files
from fedsdr.data.partition import data_fingerprint
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.identity import differing_parts

BEGUN: Final = "begun.json"


def changed_parts(folder: Path, loaded: LoadedRun) -> list[str]:
    """The parts of the model, and "data", that are not as the method in `folder` began with them.

    The first time they are noted there; nothing has changed then.
    """
    file = folder / BEGUN
    now = {**loaded.identity, "data": data_fingerprint(loaded.clients)}
    if file.exists():
        return differing_parts(files.read_json(file), now)
    files.write_json(file, now, private=True)
    return []
