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

from gradsift.errors import GradsiftError

KEY_BYTES = 32


def sign(content: object) -> str:
    """Return a signature of what JSON can hold; the key is made on first use.

    Raises:
        OSError: If the key can neither be read nor made.
    """
    return _signature(content, _key() or _new_key())


def is_signed(content: object, signature: object) -> bool:
    """Return whether a signature is this user's, and of this content.

    Raises:
        GradsiftError: If there is a key that cannot be used, which nothing can be told by.
    """
    try:
        key = _key()
    except OSError as error:
        reason = error.strerror or error
        raise GradsiftError(
            f"{key_file()}: the key that tells your runs from those of others cannot be used "
            f"({reason}). Put the old one back, or remove it: then your runs are as those of "
            "others, and `data` says which rows are meant."
        ) from error
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
    path = key_file()
    if not path.exists():
        return None
    # A pipe would be waited for.
    if not path.is_file():
        raise OSError("is no file")
    if (size := path.stat().st_size) != KEY_BYTES:
        raise OSError(f"{size} bytes, expected {KEY_BYTES}")
    return path.read_bytes()


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
