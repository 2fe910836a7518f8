"""What this user wrote, told from what others did: signatures with a key that the user keeps."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path

import platformdirs

KEY_BYTES = 32


def sign(content: object) -> str:
    """Return a signature of what JSON can hold; the key is made on first use.

    Raises:
        OSError: If the key can neither be read nor made.
    """
    return _signature(content, _key() or _new_key())


def is_signed(content: object, signature: object) -> bool:
    """Return whether a signature is this user's, and of this content."""
    try:
        key = _key()
    except OSError:
        return False
    if key is None or not isinstance(signature, str) or not signature.isascii():
        return False
    return hmac.compare_digest(_signature(content, key), signature)


def key_file() -> Path:
    """Return where the key is: in a folder of the user's own."""
    return platformdirs.user_state_path("gradsift") / "key"


def _signature(content: object, key: bytes) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    try:
        key = key_file().read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != KEY_BYTES:
        raise OSError(f"{key_file()}: {len(key)} bytes, expected {KEY_BYTES}; remove it")
    return key


def _new_key() -> bytes:
    path = key_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readable by nobody else, and whole as soon as it has its name.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Another process may have been faster: its key is the one.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    key = _key()
    assert key is not None
    return key
