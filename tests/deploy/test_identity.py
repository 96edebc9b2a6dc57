"""Keys are their owner's alone, and a message is whose key has signed it."""

import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedsdr.core.errors import UserError
from fedsdr.deploy.protocol.signing import (
    MAGIC,
    UNSIGNED,
    message_digest,
    new_key,
    open_sealed,
    public_line,
    read_private,
    read_public,
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.protocol.wire import WireError

PAYLOAD = b"payload \0\xff"


def test_a_key_pair_is_written_for_its_owner_alone(tmp_path):
    old = os.umask(0)
    try:
        line = new_key(tmp_path / "k")
    finally:
        os.umask(old)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.pub"]
    assert (tmp_path / "k.pub").read_text() == line + "\n"
    key = read_private(tmp_path / "k")
    assert key.curve.name == "secp384r1"
    assert public_line(key.public_key()) == line
    assert open_sealed(seal_payload(PAYLOAD, key), read_public(line, "k")) == PAYLOAD


@pytest.mark.parametrize("there", ["k", "k.pub"])
def test_no_key_is_written_over(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match=f"{there} exists already"):
        new_key(tmp_path / "k")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_private_key_that_others_can_open_is_not_used(tmp_path, mode):
    new_key(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(UserError, match="can be read by others: chmod 600"):
        read_private(tmp_path / "k")


def test_files_that_are_no_private_keys(tmp_path):
    path = tmp_path / "k"
    with pytest.raises(UserError, match="cannot read the private key"):
        read_private(path)
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    for content, part in ((b"", "cannot read"), (b"\xff\0", "cannot read"), (other, "no elliptic")):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UserError, match=part):
            read_private(path)


def test_a_key_under_a_passphrase_is_refused_in_words(tmp_path, monkeypatch):
    def refuse(data: bytes, password: bytes | None) -> None:
        raise TypeError("Key is password-protected, but password not provided.")

    new_key(tmp_path / "k")
    monkeypatch.setattr(serialization, "load_ssh_private_key", refuse)
    with pytest.raises(UserError, match="password-protected"):
        read_private(tmp_path / "k")


@pytest.mark.parametrize("line", ["", "x", "ssh-rsa AAAA", "ecdsa-sha2-nistp384 AAAA", "\udc80"])
def test_lines_that_are_no_public_keys(line):
    with pytest.raises(UserError, match=r"roster.json: not a public key"):
        read_public(line, "roster.json")


def test_a_message_is_its_signers(tmp_path):
    mine, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    sealed = seal_payload(PAYLOAD, mine)
    assert open_sealed(sealed, mine.public_key()) == PAYLOAD
    assert unverified_payload(sealed) == PAYLOAD
    with pytest.raises(WireError, match="a simulation without keys"):
        open_sealed(sealed, UNSIGNED)
    assert open_sealed(seal_payload(PAYLOAD, UNSIGNED), UNSIGNED) == PAYLOAD
    for wrong in (
        seal_payload(PAYLOAD, other),
        seal_payload(PAYLOAD, UNSIGNED),
        sealed + b"x",
        sealed[:-1],
    ):
        with pytest.raises(WireError, match="signature"):
            open_sealed(wrong, mine.public_key())
    for wrong in (b"", MAGIC, b"fedsdr2\n" + sealed[len(MAGIC) :], sealed[1:]):
        with pytest.raises(WireError, match="not a message of this protocol"):
            open_sealed(wrong, mine.public_key())


def test_a_digest_is_of_all_bytes():
    assert message_digest(b"a") != message_digest(b"b")
    assert len(message_digest(b"")) == 32
