"""Who a message is from: the same keys that Flower knows nodes by sign every message.

A key is an elliptic curve one (NIST P-384, as Flower demands), in OpenSSH's format. A message is
sent as magic, length of the signature, signature, payload. In a simulation there are no keys:
both ends say `UNSIGNED` in the place of one, and signatures are empty. A key that is missing is
never that: it is an error.
"""

import enum
import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.protocol.wire import WireError

MAGIC: Final = b"fedsdr1\n"
SIGNED: Final = ec.ECDSA(hashes.SHA384())

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


class Unsigned(enum.Enum):
    """The mode of a simulation, whose messages are not signed."""

    UNSIGNED = "unsigned"


UNSIGNED: Final = Unsigned.UNSIGNED
Signer = PrivateKey | Unsigned
SignatureVerifier = PublicKey | Unsigned


def new_key(path: Path) -> str:
    """Make a key pair: the private half at `path` (mode 0600), the public one at `path`.pub.

    Returns the public half's line. Nothing is written over.
    """
    public = path.with_name(path.name + ".pub")
    for taken in (path, public):
        if taken.exists():
            raise UserError(f"{taken} exists already, and keys are not replaced")
    key = ec.generate_private_key(ec.SECP384R1())
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    ).decode()
    files.write_text(path, text, private=True)
    line = public_line(key.public_key())
    files.write_text(public, line + "\n")
    return line


def public_line(key: PublicKey) -> str:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(encoding, form).decode()


def read_private(path: Path) -> PrivateKey:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # Type: a passphrase
        raise UserError(f"cannot read the private key {path}: {error}") from error
    if not isinstance(key, PrivateKey):
        raise UserError(f"{path} is no elliptic curve key: make one by `fedsdr deploy init`")
    if path.stat().st_mode & 0o077 and os.name == "posix":
        raise UserError(f"{path} can be read by others: chmod 600 {path}")
    return key


def read_public(line: str, where: str) -> PublicKey:
    """where: what to call its place in an error."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{where}: not a public key in OpenSSH's format: {error}") from error
    if not isinstance(key, PublicKey):
        raise UserError(f"{where}: not an elliptic curve key")
    return key


def seal_payload(payload: bytes, key: Signer) -> bytes:
    """A payload with its signature before it."""
    signature = b"" if isinstance(key, Unsigned) else key.sign(payload, SIGNED)
    return MAGIC + len(signature).to_bytes(2, "big") + signature + payload


def open_sealed(data: bytes, key: SignatureVerifier) -> bytes:
    """The payload. Raises `WireError` unless `key`'s owner sealed it; under `UNSIGNED`, where
    anybody has signed it."""
    signature, payload = _parts(data)
    if isinstance(key, Unsigned):
        if signature:
            raise WireError("it is signed, and this is a simulation without keys")
        return payload
    try:
        key.verify(signature, payload, SIGNED)
    except InvalidSignature as error:
        raise WireError("the signature is not of whom it should be from") from error
    return payload


def unverified_payload(data: bytes) -> bytes:
    """The payload, whoever sealed it: to find out who says that they did. Raises `WireError`."""
    return _parts(data)[1]


def _parts(data: bytes) -> tuple[bytes, bytes]:
    start = len(MAGIC) + 2
    if len(data) < start or not data.startswith(MAGIC):
        raise WireError("not a message of this protocol, or of another version of it")
    end = start + int.from_bytes(data[len(MAGIC) : start], "big")
    return data[start:end], data[end:]


def message_digest(data: bytes) -> str:
    """A name for a message: 128 bits of its content, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
