"""Rows in memory: what is taken, what stays as it is, and what is the same again."""

import datetime
import json
import subprocess
import sys
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gradsift.data.containers.memory import held_rows
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError

ROWS = [{"id": i, "prompt": f"q{i}", "response": f"a{i}"} for i in range(5)]


def streamed():
    return datasets.IterableDataset.from_generator(lambda: iter(ROWS))


@pytest.mark.parametrize(
    "data",
    [
        datasets.Dataset.from_list(ROWS),
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
        streamed(),
        pd.DataFrame(ROWS),
        pa.Table.from_pylist(ROWS),
        pa.Table.from_pylist(ROWS).to_batches()[0],
        ROWS,
        tuple(ROWS),
    ],
    ids=lambda data: type(data).__name__,
)
def test_the_same_rows_are_the_same_pool(data):
    pool, first = load_pool(data), load_pool(ROWS)
    assert pool.rows == first.rows
    # Unlike the others, these two keep types or features of their own.
    own = isinstance(data, datasets.Dataset | datasets.DatasetDict | pd.DataFrame)
    assert (pool.sha256 == first.sha256) != own
    assert type(data).__name__ in pool.source.name or len(data) == 1


def test_how_a_table_was_cut_and_sliced_makes_no_difference():
    table = pa.Table.from_pylist([{"id": None, "prompt": "x", "response": None}, *ROWS])
    cut = pa.concat_tables([table.slice(1, 2), table.slice(3)])
    assert load_pool(cut).sha256 == load_pool(ROWS).sha256
    assert load_pool(cut.slice(1)).sha256 != load_pool(ROWS).sha256


def test_another_process_finds_the_same():
    code = (
        "from gradsift.data.pool import load_pool\n"
        "rows = [{'id': i, 'prompt': f'q{i}', 'response': f'a{i}'} for i in range(5)]\n"
        "print(load_pool(rows).sha256)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == load_pool(ROWS).sha256


def calls(*arguments):
    return [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": one}}],
                },
            ]
        }
        for one in arguments
    ]


@pytest.mark.parametrize("as_frame", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        calls({"city": "Oslo"}, '{"city": "Oslo"}'),
        calls({"city": "Oslo"}, {"n": 1}),
        [{"text": "a"}, {"text": "b", "more": [1, "x"]}],
    ],
)
def test_rows_that_arrow_would_change_are_kept_as_json_lines(rows, as_frame):
    held = held_rows(pd.DataFrame(rows) if as_frame else rows)
    assert held.file_name == "pool-data.jsonl"
    found = [json.loads(line) for line in held.content.splitlines()]
    missing = {"more": None} if as_frame and "text" in rows[0] else {}
    assert found == [{**missing, **row} for row in rows]


def test_a_frame_of_numpy_lists_is_a_table():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    frame = pd.DataFrame({"messages": [np.array(turns)]})
    assert held_rows(frame).file_name == "pool-data.arrow"
    assert load_pool(frame).rows[0].example.messages[1]["content"] == "a"


def test_a_stream_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr("gradsift.data.containers.memory.ROWS_BETWEEN_NOTES", 2)
    with caplog.at_level("INFO", "gradsift"):
        load_pool(streamed())
    assert [r.getMessage() for r in caplog.records] == [
        "2 rows of the stream read",
        "4 rows of the stream read",
        "the stream's 5 rows are in memory",
    ]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (3, {}, "`data` is a int; expected a file"),
        ([1, 2], {}, "`data` is a list of int; expected"),
        ([{"text": "x"}, "y"], {}, "`data` is a list of str; expected"),
        ([], {}, "`data` is empty"),
        (pa.table({"text": pa.array([], pa.string())}), {}, "empty Table"),
        (ROWS, {"split": "train"}, "list and has no splits"),
        (
            datasets.DatasetDict({k: datasets.Dataset.from_list(ROWS) for k in ("train", "test")}),
            {},
            "DatasetDict with the splits train, test; name one with `split`",
        ),
        (ROWS, {"data_config": "main"}, "leave out `data_config`"),
        ([{"text": "x", "extra": [{1, 2}]}], {}, "row 0 of the list .* neither Arrow nor JSON"),
    ],
)
def test_what_is_not_taken_says_so(data, options, message):
    with pytest.raises(GradsiftError, match=message):
        load_pool(data, **options)


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("as_frame", [False, True])
@pytest.mark.parametrize("levels", [40, 90, 150, 400])
def test_deep_fields_that_nobody_reads_are_of_no_consequence(levels, as_frame):
    rows = [{**ROWS[0], "more": nested(levels)}]
    held = held_rows(pd.DataFrame(rows) if as_frame else rows)
    assert (held.file_name == "pool-data.jsonl") == (levels > 50)
    assert load_pool(pd.DataFrame(rows) if as_frame else rows).rows[0].example is not None


@pytest.mark.parametrize("as_frame", [False, True])
def test_what_is_too_deep_for_json_is_refused(as_frame):
    rows = [{**ROWS[0], "more": nested(3000)}]
    with pytest.raises(GradsiftError, match=r"row 0 of the .* neither Arrow nor JSON"):
        load_pool(pd.DataFrame(rows) if as_frame else rows)


@pytest.mark.parametrize("form", ["arrow", "pandas", "numpy"])
def test_the_format_of_a_stream_makes_no_difference(form):
    assert load_pool(streamed().with_format(form)).rows == load_pool(ROWS).rows


def test_a_transform_is_refused():
    data = datasets.Dataset.from_list(ROWS).with_transform(lambda batch: batch)
    with pytest.raises(GradsiftError, match=r"a Dataset with a transform .*apply it with `map`"):
        load_pool(data)


def test_numpy_in_a_list_is_python():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"id": np.int64(7), "messages": np.array(turns)}]
    assert load_pool(rows).rows == load_pool([{"id": 7, "messages": turns}]).rows


@pytest.mark.parametrize("as_frame", [False, True])
@pytest.mark.parametrize(
    "value", [pd.Timestamp("2020-01-01"), datetime.date(2020, 1, 1), b"x", Decimal("1.5")]
)
def test_a_value_that_nobody_reads_is_of_no_consequence(value, as_frame):
    rows = [{**row, "when": value} for row in calls({"city": "Oslo"}, {"n": 1})]
    assert not load_pool(pd.DataFrame(rows) if as_frame else rows).dropped_by_reason
    # It is no text.
    pairs = [{"prompt": "q", "response": "a", "x": 1}, {"prompt": "q", "response": value, "x": "y"}]
    assert load_pool(pairs).rows[1].reason == "wrong_type"


@pytest.mark.parametrize("inputs", [["x", float("nan")], [float("nan")] * 2])
def test_nan_in_a_list_is_null(inputs):
    rows = [{"instruction": "q", "input": one, "output": "a"} for one in inputs]
    assert not load_pool(rows).dropped_by_reason
    assert load_pool(rows).rows == load_pool(pd.DataFrame(rows)).rows


def test_an_index_with_a_name_is_a_column():
    frame = pd.DataFrame(ROWS).set_index("id")
    assert load_pool(frame).rows == load_pool(ROWS).rows
