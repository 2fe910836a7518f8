import hashlib
import json

import pytest

from gradsift.utils import sha256_of, short_sha256, whole_folder, write_atomically, write_json


def test_a_digest_is_that_of_the_whole_in_however_many_parts(tmp_path):
    whole = hashlib.sha256("ä and b".encode()).hexdigest()
    assert short_sha256("ä and b") == whole[:16]
    assert short_sha256("ä and b".encode(), length=64) == whole
    assert short_sha256(part for part in ("ä", b" and", " b")) == whole[:16]
    (tmp_path / "file").write_text("ä and b", encoding="utf-8")
    assert sha256_of(tmp_path / "file") == whole


def broken(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "folder" / "file.json"
    write_json(path, {"ä": 1})
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("1")
        assert not folder.exists()
    with (
        pytest.raises(OSError, match="disk full"),
        whole_folder(folder, replace=True) as unfinished,
    ):
        broken(unfinished / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in folder.iterdir()] == ["a"]
    with whole_folder(folder, replace=True) as unfinished:
        (unfinished / "b").write_text("2")
    assert [p.name for p in folder.iterdir()] == ["b"]
