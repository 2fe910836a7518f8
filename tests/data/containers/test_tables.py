"""Of a table only what is read is converted, and a cell that cannot be costs its row at most."""

import datetime
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from gradsift.data.containers.lines import Place
from gradsift.data.containers.rows import write_rows
from gradsift.data.containers.tables import Block, TableRecord
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError

N = 1000
BEYOND = pa.array([2**60] * N, pa.timestamp("us"))
MAP = pa.map_(pa.string(), pa.int64())


class Shouting(pa.ExtensionType):
    """A type that nobody else knows."""

    def __init__(self):
        super().__init__(pa.string(), "test.shouting")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


UNREAD = {
    "date beyond Python's": BEYOND,
    "nanoseconds": pa.array([1] * N, pa.timestamp("ns")),
    "unknown zone": pa.array([0] * N, pa.timestamp("s", tz="Moon/Crater")),
    "date64": pa.array([2**61] * N, pa.int64()).cast(pa.date64(), safe=False),
    "nested map": pa.array(
        [[("a", [("b", 1)])]] * N, pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))
    ),
    "duration": pa.array([2**62] * N, pa.duration("s")),
    "extension": pa.ExtensionArray.from_storage(Shouting(), pa.array(["x"] * N)),
    "union": pa.UnionArray.from_dense(
        pa.array([0] * N, pa.int8()), pa.array(range(N), pa.int32()), [pa.array([1] * N)]
    ),
}


def write(path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def columns(**more):
    return {
        "prompt": [f"q{i}" for i in range(N)],
        "response": [f"a{i}" for i in range(N)],
        **more,
    }


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", UNREAD)
def test_a_column_that_nobody_reads_is_of_no_consequence(tmp_path, suffix, kind):
    if (suffix, kind) == ("parquet", "union"):
        pytest.skip("Parquet has no unions")
    path = write(tmp_path / f"d.{suffix}", columns(other=UNREAD[kind]))
    pool = load_pool(path)
    assert not pool.dropped_by_reason
    out = write_rows(pool.source, [Place(1), Place(299), Place(300), Place(999)], tmp_path / "out")
    read = pq.read_table if suffix == "parquet" else lambda p: pa.ipc.open_file(p).read_all()
    assert read(out) == read(path).take([1, 299, 300, 999])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_cell_that_cannot_be_converted_drops_its_row(tmp_path, suffix):
    raw = [f"a{i}".encode() for i in range(N)]
    raw[7] = raw[650] = b"\xff"
    text = pc.cast(pa.array(raw), pa.string(), safe=False)
    path = write(tmp_path / f"d.{suffix}", columns(response=text))
    pool = load_pool(path)
    assert pool.dropped_by_reason == {"unreadable_line": 2}
    assert [row.row for row in pool.rows if row.reason] == [7, 650]
    assert pool.rows[650].detail.startswith("'response' cannot be converted: 'utf-8'")
    # Where nobody reads it, it is no reason.
    path = write(tmp_path / f"e.{suffix}", {**columns(), "other": text})
    assert not load_pool(path).dropped_by_reason


def test_a_column_that_is_needed_and_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / "d.parquet", {"text": BEYOND})
    with pytest.raises(GradsiftError, match=r"unreadable_line 1000.*row 0: 'text' cannot be conv"):
        load_pool(path)


def test_an_id_that_cannot_be_converted_drops_its_row(tmp_path):
    ids = [datetime.datetime(2020, 1, 1)] * N
    array = pc.add(pa.array(ids, pa.timestamp("s")), pa.scalar(0, pa.duration("s")))
    assert not load_pool(write(tmp_path / "d.parquet", columns(id=array))).dropped_by_reason
    with pytest.raises(GradsiftError, match="'id' cannot be converted"):
        load_pool(write(tmp_path / "e.parquet", columns(id=BEYOND)))


def test_column_names_must_differ(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(GradsiftError, match=r"found twice: \['text'\]"):
        load_pool(tmp_path / "d.parquet")


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "d.parquet", columns(other=[7] * N))
    read = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, columns=None, **k: read.append(columns) or real(self, i, columns, **k),
    )
    load_pool(path)
    assert {name for columns in read for name in columns} == {"prompt", "response"}


def test_what_is_looked_at_to_find_out_the_format_is_not_what_is_read(tmp_path):
    # A field of this name may hold turns.
    assert not load_pool(write(tmp_path / "d.parquet", columns(data=BEYOND))).dropped_by_reason


def test_a_column_that_is_shorter_than_the_file_says(tmp_path):
    block = Block(pa.schema({"text": pa.string()}), 3, lambda name: pa.chunked_array([["a"]]))
    record = TableRecord(block, 2)
    assert record.unreadable is None
    assert record["text"] is None
    assert record.unreadable == "column 'text' cannot be read: 1 values for 3 rows"
    record.forget()
    assert record.unreadable is None


TURN = {"role": "user", "content": "q"}
MIXED = [
    [TURN, {"role": "assistant", "content": content}]
    for content in ("x", [{"type": "text", "text": "y"}])
]
WITH_NULL = [
    [TURN, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": one}}]}]
    for one in ({"a": None, "b": 1}, {"a": [1]})
]


@pytest.mark.parametrize("kept_as", ["memory", "parquet", "disk"])
@pytest.mark.parametrize("messages", [MIXED, WITH_NULL])
def test_json_in_a_column_is_what_it_says(tmp_path, messages, kept_as):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"messages": messages}, on_mixed_types="use_json")
    if kept_as == "parquet":
        data.to_parquet(tmp_path / "d.parquet")
    if kept_as == "disk":
        data.save_to_disk(tmp_path / "d")
    where = {"memory": data, "parquet": tmp_path / "d.parquet", "disk": tmp_path / "d"}
    rows = load_pool(where[kept_as]).rows
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    assert [row.example for row in rows] == [
        row.example for row in load_pool(tmp_path / "d.jsonl").rows
    ]


def test_a_map_is_an_object(tmp_path):
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    turns = [[*TURN.items()], [("role", "assistant"), ("content", "a")]]
    twice = [[*TURN.items()], [("role", "assistant"), ("content", "a"), ("content", "b")]]
    path = write(tmp_path / "d.parquet", {"messages": pa.array([turns, twice], kind)})
    first, second = load_pool(path).rows
    assert first.example.messages == (TURN, {"role": "assistant", "content": "a"})
    assert second.reason == "unreadable_line"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_views_are_copied(tmp_path, suffix, kind):
    more = pa.array(["x", "y", "z"]).cast(kind)
    table = pa.table({"prompt": ["a", "b", "c"], "response": ["a", "b", "c"], "more": more})
    assert load_pool(table).sha256 == load_pool(pa.concat_tables([table[:1], table[1:]])).sha256
    path = write(tmp_path / f"d.{suffix}", dict(zip(table.column_names, table, strict=True)))
    out = write_rows(load_pool(path).source, [Place(0), Place(2)], tmp_path / "out")
    assert [row.example.messages[0]["content"] for row in load_pool(out).rows] == ["a", "c"]


def test_run_end_encoding_is_refused_at_the_start(tmp_path):
    path = write(tmp_path / "d.arrow", columns(x=pc.run_end_encode(pa.array([1] * N))))
    with pytest.raises(GradsiftError, match="'x' is run-end encoded"):
        load_pool(path)


@pytest.mark.parametrize("as_disk", [False, True])
def test_a_stream_that_is_cut_is_refused(tmp_path, as_disk):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"]})
    dataset.save_to_disk(tmp_path / "d")
    path = next((tmp_path / "d").glob("*.arrow"))
    assert len(load_pool(tmp_path / "d").rows) == len(load_pool(path).rows) == 2
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(GradsiftError, match="cut off or was never closed"):
        load_pool(tmp_path / "d" if as_disk else path)
