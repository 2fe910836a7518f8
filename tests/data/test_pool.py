import json

import pytest

from gradsift.data.pool import load_pool


def test_ids(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [
        {"id": "a", "text": "1"},
        {"id": "a", "text": "2"},
        {"id": 7, "text": "3"},
        {"text": "4"},
        {"text": "4"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    pool = load_pool(str(path))
    assert [row.reason for row in pool.rows] == [None, "duplicate_id", None, None, None]
    assert "line 1" in pool.rows[1].detail
    ids = [row.instance_id for row in pool.rows]
    assert ids[0] == "a"
    assert ids[2] == "7"
    assert ids[4] == ids[3] + "-2"
    named = load_pool(str(path), id_column="id")
    assert [row.reason for row in named.rows][3:] == ["missing_field"] * 2


def test_every_id_is_unique_and_a_usable_row_keeps_its_own(tmp_path):
    path = tmp_path / "d.jsonl"
    ids = ["a", "a", "a_", "a#row1", "b", "b", 7, 7]
    empty = (4, 6)
    rows = [{"id": own, "text": "" if i in empty else f"{i}"} for i, own in enumerate(ids)]
    path.write_text("\n".join(map(json.dumps, rows)))
    pool = load_pool(str(path))
    assert [row.reason for row in pool.rows] == [
        None,
        "duplicate_id",
        None,
        None,
        "empty_response",
        None,
        "empty_response",
        None,
    ]
    usable = [row.instance_id for row in pool.rows if row.example is not None]
    assert usable == ["a", "a_", "a#row1", "b", "7"]
    assert len({row.instance_id for row in pool.rows}) == len(rows)


def test_ids_stay_short_where_all_rows_have_the_same(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"id": "0", "text": str(i)}) for i in range(500)))
    assert max(len(row.instance_id) for row in load_pool(str(path)).rows) <= len("0#row499")


@pytest.mark.parametrize("field", ["text", "id"])
def test_half_a_surrogate_pair_can_be_stored_or_is_dropped(tmp_path, field):
    path = tmp_path / "d.jsonl"
    bad = json.dumps({"id": "a", "text": "x", field: "\ud83d"})
    path.write_text(bad + '\n{"id": "b", "text": "ok"}\n')
    pool = load_pool(str(path))
    assert [row.reason for row in pool.rows] == [
        "unreadable_line" if field == "text" else None,
        None,
    ]
    for row in pool.rows:
        row.instance_id.encode()
        (row.detail or "").encode()


def test_ids_without_an_id_field_do_not_depend_on_the_order(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = [json.dumps({"text": str(i)}) for i in range(4)]
    first.write_text("\n".join(lines))
    second.write_text("\n".join(reversed(lines)))
    ids = [[row.instance_id for row in load_pool(str(path)).rows] for path in (first, second)]
    assert ids[0] == ids[1][::-1]


def test_a_row_says_where_it_comes_from(tmp_path):
    rows = [
        {"prompt": "a", "response": "b", "source": "book", "origin": 7},
        {"prompt": "c", "response": "d", "source": "", "origin": True},
        {"prompt": "e", "response": "f", "origin": "\ud800"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.source for row in load_pool(str(path)).rows] == ["book", None, None]
    named = load_pool(str(path), source_column="origin")
    assert [row.source for row in named.rows] == ["7", None, "\\ud800"]
    with pytest.raises(ValueError, match="no row has the source field 'orgin'"):
        load_pool(str(path), source_column="orgin")
