from __future__ import annotations

import multiprocessing
import os
import stat

import pytest

import gradsift as gs
from gradsift.signatures import is_signed, key_file, sign

CONTENT = {"data": {"name": "/a/b", "parts": [1, None]}, "data_sha256": "x"}


@pytest.fixture(autouse=True)
def account(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_only_the_same_content_is_signed():
    signature = sign(CONTENT)
    assert is_signed(CONTENT, signature)
    assert sign(dict(reversed(CONTENT.items()))) == signature
    for other in ({**CONTENT, "data_sha256": "y"}, {**CONTENT, "more": 1}, {}, None):
        assert not is_signed(other, signature)
    for other in (None, "", signature[:-1], signature.upper(), 0, "é", [signature]):
        assert not is_signed(CONTENT, other)


def test_the_key_is_the_users_alone_and_stays():
    assert not is_signed(CONTENT, "a" * 64)
    assert not key_file().exists()
    signature = sign(CONTENT)
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert list(key_file().parent.iterdir()) == [key_file()]
    assert sign(CONTENT) == signature


def test_another_account_has_another_key(tmp_path, monkeypatch):
    signature = sign(CONTENT)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_signed(CONTENT, signature)
    assert sign(CONTENT) != signature


def test_processes_that_begin_at_once_have_one_key():
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(sign, [CONTENT] * 16, chunksize=1))) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33, None])
def test_a_key_that_is_none_signs_nothing_and_says_so(content):
    key_file().parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(key_file())
    else:
        key_file().write_bytes(content)
    with pytest.raises(OSError, match=r"expected 32|is no file"):
        sign(CONTENT)
    with pytest.raises(gs.GradsiftError, match=r"gradsift/key: the key .* cannot be used \("):
        is_signed(CONTENT, "a" * 64)
