import numpy as np
import pyarrow as pa
import pytest

from gradsift.seals import read_parquet, write_parquet
from gradsift.store.tables import (
    LOSS_NAMES,
    LOSSES_FOLDER,
    NEIGHBOURS_NAME,
    POOL_NAME,
    POOL_SCHEMA,
    LossesMadeFrom,
    ReferenceLossesMissing,
    instances_with_losses,
    read_losses,
    read_neighbours,
    read_pool_table,
    write_losses,
    write_neighbours,
)

GRAPH = (
    np.array([0, 2, 3, 5]),
    np.array([0, 2, 1, 0, 2], dtype=np.int32),
    np.array([1, 0.5, 1, 0.5, 1], dtype=np.float32),
    np.array([0.1, 0, 0], dtype=np.float32),
    np.array([1, 0, 1], dtype=np.int32),
)


def test_a_graph_comes_back_as_it_was_if_made_from_the_same(tmp_path):
    assert read_neighbours(tmp_path, "this") is None
    write_neighbours(tmp_path, "this", *GRAPH)
    for found, expected in zip(read_neighbours(tmp_path, "this"), GRAPH, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert read_neighbours(tmp_path, "that") is None


def test_a_graph_with_topics_instead_of_clusters_is_read(tmp_path):
    write_neighbours(tmp_path, "this", *GRAPH)
    path = tmp_path / NEIGHBOURS_NAME
    table = read_parquet(path)
    names = ["topic" if name == "cluster" else name for name in table.column_names]
    former = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    write_parquet(path, former)
    np.testing.assert_array_equal(read_neighbours(tmp_path, "this")[-1], GRAPH[-1])


def test_a_damaged_graph_is_made_again(tmp_path):
    write_neighbours(tmp_path, "this", *GRAPH)
    path = tmp_path / NEIGHBOURS_NAME
    path.write_bytes(path.read_bytes()[:-20])
    assert read_neighbours(tmp_path, "this") is None


MADE_FROM = LossesMadeFrom("m", "i")


def losses(*values):
    return {name: [v + i for v in values] for i, name in enumerate(LOSS_NAMES)}


def test_losses_of_several_parts_are_read_in_the_order_asked_for(tmp_path):
    write_losses(tmp_path, MADE_FROM, ["b", "a"], losses(1.0, 2.0))
    assert instances_with_losses(tmp_path, MADE_FROM) == {"a", "b"}
    with pytest.raises(
        ReferenceLossesMissing,
        match=r"1 of 3 instances have no reference losses.*gradsift reference-losses",
    ):
        read_losses(tmp_path, ["a", "b", "c"], MADE_FROM)
    write_losses(tmp_path, MADE_FROM, ["c"], losses(float("nan")))
    found = read_losses(tmp_path, ["a", "b", "c"], MADE_FROM)
    np.testing.assert_array_equal(found["alone"], [3.0, 2.0, np.nan])
    for other in (LossesMadeFrom("other", "i"), LossesMadeFrom("m", "other")):
        with pytest.raises(ReferenceLossesMissing, match=r"made with .* [mi], this run has other"):
            instances_with_losses(tmp_path, other)
        with pytest.raises(ReferenceLossesMissing, match=r"made with .* [mi], this run has other"):
            read_losses(tmp_path, ["a"], other)


def test_losses_of_an_earlier_gradsift_are_told_apart_and_computed_anew(tmp_path, caplog):
    write_losses(tmp_path, MADE_FROM, ["a", "b"], losses(1.0, 2.0))
    path = tmp_path / LOSSES_FOLDER / "part-00000.parquet"
    table = read_parquet(path)
    former = table.select(["instance_id", "response", "alone", "text"])
    noted = {k: v for k, v in table.schema.metadata.items() if k != b"definition"}
    write_parquet(path, former.replace_schema_metadata(noted))
    write_losses(tmp_path, MADE_FROM, ["c"], losses(3.0))
    with pytest.raises(ReferenceLossesMissing, match=r"earlier gradsift.*reference-losses"):
        read_losses(tmp_path, ["c"], MADE_FROM)
    assert instances_with_losses(tmp_path, MADE_FROM) == {"c"}
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / LOSSES_FOLDER}: the losses of 2 rows are of an earlier gradsift, which "
        "defined them otherwise: they are computed anew"
    ]
    assert read_losses(tmp_path, ["c"], MADE_FROM)["alone"] == [4.0]


def test_a_pool_table_from_before_sources_were_noted_says_that_none_is_known(tmp_path):
    old = [field for field in POOL_SCHEMA if field.name not in ("source", "language")]
    values = {"row": 0, "instance_id": "a", "status": "instance"}
    write_parquet(tmp_path / POOL_NAME, pa.Table.from_pylist([values], schema=pa.schema(old)))
    table = read_pool_table(tmp_path)
    assert table["source"].to_pylist() == table["language"].to_pylist() == [None]
