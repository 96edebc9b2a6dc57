"""Flower's messages as envelopes of ours: one array of bytes each. Imports nothing heavy."""

import os

# Read when flwr is imported: nothing calls home.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, RecordDict

RECORD, ARRAY = "fedsdr", "message"
KIND = "train"  # one of Flower's types of message; ours are inside


def pack_bytes(data: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype="fedsdr", data=data)
    return RecordDict({RECORD: ArrayRecord({ARRAY: array})})


def unpack_bytes(content: RecordDict) -> bytes:
    """Raises ValueError for a record that is not ours."""
    try:
        return bytes(content.array_records[RECORD][ARRAY].data)
    except KeyError as error:
        raise ValueError("a message without our record") from error
