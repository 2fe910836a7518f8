import json

import pytest

from gradsift.data.id_lists import read_ids
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError


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
    pool = load_pool(str(path), duplicate_ids="drop")
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
    pool = load_pool(str(path), duplicate_ids="drop")
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


def test_rows_of_one_id_that_say_different_things_are_told_apart(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [
        ("0", "a"),
        ("0", "b"),
        ("0#3", "c"),
        ("0", "d"),
        ("0", "a"),
        ("0", "b"),
        (0, "e"),
        ("0#2", "f"),
    ]
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in rows))
    pool = load_pool(str(path))
    ids = [row.instance_id for row in pool.rows if row.example is not None]
    assert ids == ["0", "0#4", "0#3", "0#5", "0#6", "0#2"]
    assert [row.reason for row in pool.rows] == [*[None] * 4, *["duplicate_id"] * 2, None, None]
    assert "line 2 and says the same" in pool.rows[5].detail
    assert len({row.instance_id for row in pool.rows}) == len(rows)
    (note,) = (note for note in pool.notes() if "id of an earlier row" in note)
    assert note.startswith("3 rows have")
    assert "line 2: '0' is called '0#4'" in note
    strict = load_pool(str(path), duplicate_ids="drop")
    assert strict.dropped_by_reason == {"duplicate_id": 5}


@pytest.mark.parametrize("path", ["d.jsonl", "d.json"])
def test_what_no_template_could_render_is_dropped_and_the_others_are_read(tmp_path, path):
    def row(arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": arguments}}}
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
        return json.dumps({"messages": turns})

    deep = '{"a": ' * 500 + "1" + "}" * 500
    cases = [
        (row(1), None),
        (row(1).replace('"a": 1', f'"a": {deep}'), "nested"),
        (row(1).replace('"a": 1', '"a": ' + "[" * 10**5 + "]" * 10**5), "nested"),
        (row(float("nan")), "not finite"),
        (row(1).replace('"a": 1', '"a": 1e999'), "not finite"),
        (row(1).replace('"a": 1', f'"a": {"9" * 5000}'), "not finite"),
        (row(1)[:-1] + ', "n": ' + "9" * 5000 + "}", None),
        (row(1)[:-1] + ', "score": NaN}', None),
        (row("\ud83d"), "surrogate"),
        (row(1).replace('"q"', '"q\0"'), "control character"),
        (row(1).replace('"q"', '"q\udcff"'), "not UTF-8"),
        (row(2), None),
    ]
    lines = [line for line, _ in cases]
    text = "\n".join(lines) if path == "d.jsonl" else f"[{','.join(lines)}]"
    (tmp_path / path).write_bytes(text.encode("utf-8", "surrogateescape"))
    pool = load_pool(tmp_path / path)
    for found, (_, said) in zip(pool.rows, cases, strict=True):
        assert (found.reason is None) == (said is None), found
        if said is not None:
            assert found.reason in ("unreadable_line", "wrong_type")
            assert said in found.detail


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1.0, 2.0], ["1", "2"]),
        ([1, None], ["1", None]),
        ([True, 1.5], [None, None]),
        ([["x"], "y"], [None, "y"]),
    ],
)
def test_ids_that_are_none_are_said(tmp_path, ids, expected):
    path = tmp_path / "d.jsonl"
    rows = [{"id": one, "text": f"x{i}"} for i, one in enumerate(ids)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = load_pool(path)
    for row, wanted in zip(pool.rows, expected, strict=True):
        assert row.instance_id == (wanted or row.content_hash)
    n_odd = sum(a is not None and b is None for a, b in zip(ids, expected, strict=True))
    said = f"{n_odd} rows have an id that is neither text nor a whole number"
    assert any(note.startswith(said) for note in pool.notes()) == bool(n_odd)


def test_the_row_of_a_shared_id_has_to_be_named_by_its_own(tmp_path):
    path = tmp_path / "keep.jsonl"
    path.write_text('{"id": "b"}\n{"id": "a", "text": "x"}\n')
    assert read_ids(str(path), "keep", "id") == ["b", "a"]
    with pytest.raises(GradsiftError, match=r"line 2: several rows have the id 'a'.*a#2"):
        read_ids(str(path), "keep", "id", {"a"})
    path.write_text("a\na#2\n", encoding="utf-16")
    assert read_ids(str(path), "keep", "id", {"a"}) == ["a", "a#2"]
