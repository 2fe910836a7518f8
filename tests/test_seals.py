import hashlib
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from gradsift.errors import GradsiftError
from gradsift.seals import (
    DamagedError,
    read_json,
    read_parquet,
    require_sealed_lines,
    sealed_lines,
    sha256_of,
    short_sha256,
    write_json,
    write_parquet,
)

VALUE = {"ä": [1.5, None, True], "b": {"c": "x" * 50, "d": [[1], [2]]}, "e": 1e-7}
TABLE = pa.table({"id": [f"r{i}" for i in range(400)], "x": [i / 7 for i in range(400)]})


def test_a_digest_is_that_of_the_whole_in_however_many_parts(tmp_path):
    whole = hashlib.sha256("ä and b".encode()).hexdigest()
    assert short_sha256("ä and b") == whole[:16]
    assert short_sha256("ä and b".encode(), length=64) == whole
    assert short_sha256(part for part in ("ä", b" and", " b")) == whole[:16]
    (tmp_path / "file").write_text("ä and b", encoding="utf-8")
    assert sha256_of(tmp_path / "file") == whole


def test_json_comes_back(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, VALUE | {"f": (1, 2)})
    assert read_json(path) == VALUE | {"f": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == VALUE | {"f": [1, 2]}


def write_yaml(path, text):
    path.write_text(sealed_lines(text))


def read_yaml(path):
    require_sealed_lines(path)
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise DamagedError(path, "as config_files says it") from error


KINDS = {
    "json": (lambda path: write_json(path, VALUE), read_json),
    "parquet": (lambda path: write_parquet(path, TABLE), read_parquet),
    "yaml": (lambda path: write_yaml(path, "a: 1\nb: [x, y]\n"), read_yaml),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_is_flipped_in_silence(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    whole, content = read(path), path.read_bytes()
    rng, n_named = random.Random(0), 0
    for at in {*range(min(len(content), 300)), *range(max(0, len(content) - 600), len(content))}:
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            found = read(path)
        except DamagedError:
            n_named += 1
        else:
            # Where the digest's own name was hit, or a space between two values.
            if kind != "parquet":
                found = {name: one for name, one in found.items() if name in whole}
            assert found == whole
    assert n_named > len(content[:900]) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_cut_is_named(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    content = path.read_bytes()
    lengths = range(0, len(content) - 1, max(1, len(content) // 50))
    if kind == "yaml":  # A cut in its first line leaves no settings at all.
        lengths = range(content.index(b"below: ") + 7, len(content))
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match="file: damaged or changed"):
            read(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [("[1]", "found list"), ("[" * 100_000, "no JSON"), ('{"a": 1, "sha256": 5}', "SHA-256")],
)
def test_json_that_is_not_ours_is_named(tmp_path, content, what):
    (tmp_path / "file").write_text(content)
    with pytest.raises(DamagedError, match=what):
        read_json(tmp_path / "file")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "file")
    for read in (read_json, read_parquet, require_sealed_lines):
        with pytest.raises(GradsiftError, match="is no file"):
            read(tmp_path / "file")


def test_what_was_written_before_there_were_digests_is_read(tmp_path):
    (tmp_path / "a").write_text(json.dumps(VALUE))
    assert read_json(tmp_path / "a") == VALUE
    pq.write_table(TABLE, tmp_path / "b")
    assert read_parquet(tmp_path / "b", ["x"]) == TABLE.select(["x"])
    (tmp_path / "c").write_text("a: 1\n")
    require_sealed_lines(tmp_path / "c")


def test_others_read_it_as_what_it_is(tmp_path):
    write_parquet(tmp_path / "b", TABLE.replace_schema_metadata({b"made_from": b"x"}))
    table = pq.read_table(tmp_path / "b")
    assert table == TABLE
    assert table.schema.metadata == {b"made_from": b"x"}
