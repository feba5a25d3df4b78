"""Seals: what only the holder of a key can write under a log.

Without a key, a log shows every change that does not go through all of its later lines and its head file. With a
key, nobody without it can make a log that verifies. A secret (HMAC-SHA256, RFC 2104) seals and verifies; an Ed25519
key (RFC 8032, extra ``signing``) seals with its private half, and anybody verifies with the public one.

Example:
    >>> seal = seal_of(b"a secret of at least sixteen bytes")
    >>> seal.verifies(b"text", seal.sign(b"text")), seal.verifies(b"other", seal.sign(b"text"))
    (True, False)
"""

from __future__ import annotations

import hashlib
import hmac
from os import PathLike
from pathlib import Path
from typing import Any, Final, Protocol

from brix_core.errors import BrixConfigurationError

MIN_SECRET: Final = 16
"""Bytes a secret must have, at least."""


class Seal(Protocol):
    """Signs and verifies."""

    @property
    def algorithm(self) -> str:
        """``"hmac-sha256"`` or ``"ed25519"``."""
        ...

    @property
    def key_id(self) -> str:
        """The key's fingerprint; it tells keys apart, and nothing about them."""
        ...

    def sign(self, text: bytes) -> str:
        """The signature, in hexadecimal.

        Raises:
            BrixConfigurationError: This key can only verify.
        """
        ...

    def verifies(self, text: bytes, signature: str) -> bool:
        """Whether this key made the signature of this text."""
        ...


class SecretSeal:
    """HMAC-SHA256 with a shared secret."""

    algorithm = "hmac-sha256"

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.key_id = hashlib.sha256(b"brix-audit-key:" + secret).hexdigest()[:16]

    def sign(self, text: bytes) -> str:
        """See `Seal`."""
        return hmac.digest(self._secret, text, "sha256").hex()

    def verifies(self, text: bytes, signature: str) -> bool:
        """See `Seal`."""
        return hmac.compare_digest(self.sign(text).encode(), signature.encode())


class Ed25519Seal:
    """Ed25519, with a private key or, to verify only, a public one."""

    algorithm = "ed25519"

    def __init__(self, private: Any, public: Any) -> None:
        from cryptography.hazmat.primitives import serialization

        self._private = private
        self._public = public
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key_id = hashlib.sha256(raw).hexdigest()[:16]

    def sign(self, text: bytes) -> str:
        """See `Seal`."""
        if self._private is None:
            raise BrixConfigurationError("a public key verifies a log; writing one needs the private key")
        signature: bytes = self._private.sign(text)
        return signature.hex()

    def verifies(self, text: bytes, signature: str) -> bool:
        """See `Seal`."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(bytes.fromhex(signature), text)
        except (InvalidSignature, ValueError):
            return False
        return True


def seal_of(key: Any) -> Seal:
    """The seal of a key.

    Args:
        key: A secret (bytes, or text in UTF-8) of at least 16 bytes; the path of a file that holds a secret or a PEM
            key (a `Path`, or a text that begins like one or names a file); PEM text; or a key object of the package
            ``cryptography``.

    Raises:
        BrixConfigurationError: It is no key, too short a secret, or Ed25519's package is missing.
    """
    if isinstance(key, PathLike):
        key = _read(Path(key))
    if isinstance(key, str):
        key = _read(Path(key).expanduser()) if _names_a_file(key) else key.encode()
    if isinstance(key, bytes | bytearray):
        key = bytes(key)
        if b"-----BEGIN " in key:
            return _of_pem(key)
        if len(key) < MIN_SECRET:
            raise BrixConfigurationError(
                f"a log key needs at least {MIN_SECRET} bytes, got {len(key)}; make one with secrets.token_bytes(32)"
            )
        return SecretSeal(key)
    return _of_object(key)


def _names_a_file(key: str) -> bool:
    """Whether a text is a path and no secret: taking one for the other would make a key that everybody can read."""
    if "-----BEGIN " in key or "\n" in key or "\0" in key:
        return False
    return key.startswith(("/", "./", "../", "~")) or Path(key).exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise BrixConfigurationError(
            f"the log key cannot be read: {error}; give the path of a readable file"
        ) from error


def _of_pem(pem: bytes) -> Seal:
    _demand_cryptography()
    from cryptography.hazmat.primitives import serialization

    try:
        if b"PRIVATE KEY" in pem:
            return _of_object(serialization.load_pem_private_key(pem, password=None))
        return _of_object(serialization.load_pem_public_key(pem))
    except (TypeError, ValueError) as error:
        raise BrixConfigurationError(f"the log key is no Ed25519 key in PEM without a password: {error}") from error


def _of_object(key: Any) -> Seal:
    _demand_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    if isinstance(key, Ed25519PrivateKey):
        return Ed25519Seal(key, key.public_key())
    if isinstance(key, Ed25519PublicKey):
        return Ed25519Seal(None, key)
    raise BrixConfigurationError(
        f"a log key is a secret of at least {MIN_SECRET} bytes, a path, or an Ed25519 key, got {type(key).__name__}"
    )


def _demand_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise BrixConfigurationError('Ed25519 keys need the extra: pip install "brix-guards[signing]"') from None


__all__ = ["MIN_SECRET", "Ed25519Seal", "Seal", "SecretSeal", "seal_of"]
