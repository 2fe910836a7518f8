"""Small files, broken at random: each is read with every row accounted for, or refused in a line.

GRADSIFT_MUTATIONS=1000 tries more of them; the seed is fixed, so a failure comes again.
"""

import csv
import io
import json
import os
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.data.example import DROP_REASONS
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError

MUTATIONS = int(os.environ.get("GRADSIFT_MUTATIONS", "120"))
SEED = 17
N_ROWS = 6
INFINITY = float("inf")

CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}}
FORMATS = {
    "messages": lambda i: {
        "id": f"r{i}",
        "messages": [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"answer {i}", "tool_calls": [CALL]},
        ],
    },
    "sharegpt": lambda i: {
        "id": i,
        "conversations": [
            {"from": "human", "value": f"question {i}"},
            {"from": "gpt", "value": f"answer {i}"},
        ],
    },
    "prompt_completion": lambda i: {"prompt": f"question {i}", "completion": f"answer {i}"},
    "alpaca": lambda i: {
        "instruction": f"question {i}", "input": "x", "output": f"answer {i}", "source": "book"
    },
    "qa": lambda i: {"id": f"r{i}", "question": f"question {i}", "answer": f"answer {i}"},
    "text": lambda i: {"text": f"some text {i}"},
}  # fmt: skip
FLAT = ("prompt_completion", "alpaca", "qa", "text")
CONTAINERS = ("jsonl", "json", "csv", "parquet")


def deep(n, brackets="[]"):
    return brackets[0] * n + brackets[1] * n


# What stands where a value stood, in JSON as it is written.
VALUES = (
    "null", "true", "0", "-1.5", '""', '"  "', "[]", "{}", '[""]', '{"a": 1}', "[null]", "[[]]",
    "NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "1e-999", deep(500),
    deep(100_000), '{"a":' * 500 + "1" + "}" * 500, '"\\ud83d"', '"\\udc00x"', '"\\u0000"', '"\\x"',
    '"\0"', '"\u2028"', '"' + "long " * 5000 + '"', "", "tru", '"open', "}", "]", ",",
)  # fmt: skip
BYTES = (
    b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b"\r", b"\n", b"\n\n", b"\xef\xbb\xbf",
    b"\xff\xfe", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"\x1a", b"\xf0\x9f\x98", b"\t",
)  # fmt: skip


def paths_in(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()  # fmt: skip
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def mutated_line(rng, row):
    """Return a row as JSON with something in it that does not belong there."""
    marker = "\x01here"
    path = rng.choice([path for path in paths_in(row) if path])
    kind = rng.choice(("value", "value", "key", "twice", "gone"))
    if kind == "value":
        text = json.dumps(replaced(row, path, marker))
        return text.replace(json.dumps(marker), rng.choice(VALUES))
    key = rng.choice(list(row))
    if kind == "key":
        new = rng.choice(("", "\ud800", "messages", "conversations", "id", "x" * 3000, "prompt"))
        return json.dumps({new if name == key else name: value for name, value in row.items()})
    if kind == "twice":
        return json.dumps(row)[:-1] + f", {json.dumps(key)}: {rng.choice(VALUES)}}}"
    return json.dumps({name: value for name, value in row.items() if name != key})


def mutated_bytes(rng, content):
    at = rng.randrange(len(content) + 1)
    kind = rng.choice(("put", "put", "cut", "flip", "end"))
    if kind == "put":
        return content[:at] + rng.choice(BYTES) * rng.choice((1, 1, 3)) + content[at:]
    if kind == "cut":
        return content[:at] + content[min(len(content), at + rng.choice((1, 2, 40))) :]
    if kind == "end":
        return content[:at]
    at = min(at, len(content) - 1)
    return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def made_lines(rng, rows, container):
    lines = [json.dumps(row) for row in rows]
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(rows))
        lines[at] = mutated_line(rng, rows[at])
    text = ",\n".join(lines) if container == "json" else "\n".join(lines) + "\n"
    content = (f"[{text}]" if container == "json" else text).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 1, 2))):
        content = mutated_bytes(rng, content)
    encoding = rng.choice((None,) * 8 + ("utf-16", "utf-16-le"))
    return content if encoding is None else content.decode("latin-1").encode(encoding)


def made_csv(rng, rows):
    sink = io.StringIO()
    writer = csv.writer(sink, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([rng.choice(("", 'a"b', "x\ny", "é")) if rng.random() < 0.1 else value
                         for value in row.values()])  # fmt: skip
    content = sink.getvalue().encode()
    for _ in range(rng.choice((1, 2, 3))):
        content = mutated_bytes(rng, content)
    return content


CELLS = {
    "bad text": lambda: pa.array([b"ok"] * (N_ROWS - 1) + [b"\xff"]).cast(pa.string(), safe=False),
    "beyond": lambda: pa.array([2**60] * N_ROWS, pa.timestamp("us")),
    "mixed": lambda: pa.array([2**60] + [0] * (N_ROWS - 1), pa.timestamp("us")),
    "zone": lambda: pa.array([0] * N_ROWS, pa.timestamp("s", tz="Moon/Crater")),
    "bytes": lambda: pa.array([b"\0"] * N_ROWS),
    "nan": lambda: pa.array([float("nan")] * N_ROWS),
    "map": lambda: pa.array([[("a", 1)]] * N_ROWS, pa.map_(pa.string(), pa.int64())),
    "list": lambda: pa.array([[{"role": "user"}]] * N_ROWS),
    "turns": lambda: pa.array(
        [[{"role": "assistant", "content": "x", "n": float("inf")}]] * N_ROWS
    ),
    "null": lambda: pa.nulls(N_ROWS),
    "dictionary": lambda: pa.array(["x"] * N_ROWS).dictionary_encode(),
}


def made_parquet(rng, rows):
    table = pa.Table.from_pylist(rows)
    for _ in range(rng.choice((0, 1, 1, 2))):
        column = CELLS[rng.choice(list(CELLS))]()
        at = rng.randrange(table.num_columns + 1)
        names = table.column_names
        if at < len(names):
            table = table.set_column(at, names[at], column)
        else:
            table = table.append_column(rng.choice(("other", "id", "messages", "x")), column)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rng.choice((2, 100)))
    content = sink.getvalue()
    return mutated_bytes(rng, content) if rng.random() < 0.3 else content


def n_rows_in(content, container):
    """Return how many rows there are to account for, None where only the reader can tell."""
    if container == "jsonl" and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        # Every other byte nought is UTF-16 without a mark.
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return None if b"\0" in content[:32] else sum(bool(line.strip()) for line in lines)
    if container == "parquet":
        try:
            return pq.ParquetFile(io.BytesIO(content)).metadata.num_rows
        except (pa.ArrowException, OSError):
            return None
    return None


def mutate_and_read(folder, n, seed=SEED):
    """Try n mutations; returns how many were read whole, read with drops, and refused."""
    rng, outcomes = random.Random(seed), Counter()
    for i in range(n):
        container = CONTAINERS[i % len(CONTAINERS)]
        row_format = rng.choice(FLAT if container == "csv" else tuple(FORMATS))
        rows = [FORMATS[row_format](at) for at in range(N_ROWS)]
        if container == "csv":
            content = made_csv(rng, rows)
        elif container == "parquet":
            content = made_parquet(rng, rows)
        else:
            content = made_lines(rng, rows, container)
        path = folder / f"d.{container}"
        path.write_bytes(content)
        about = f"mutation {i}, {container} of {row_format}: {content[:2000]!r}"
        try:
            pool = load_pool(path)
        except GradsiftError as error:
            refused = str(error).replace(str(path), "")
        except Exception as error:
            raise AssertionError(about) from error
        else:
            refused = None
        if refused is not None:
            assert "\n" not in refused, about
            assert len(refused) < 1000, about
            outcomes[container, "refused"] += 1
            continue
        usable = sum(row.example is not None for row in pool.rows)
        dropped = pool.dropped_by_reason
        assert usable > 0, about
        assert usable + sum(dropped.values()) == len(pool.rows), about
        assert len({row.instance_id for row in pool.rows}) == len(pool.rows), about
        assert set(dropped) <= set(DROP_REASONS), about
        assert all(len(note.encode()) < 2000 for note in pool.notes()), about
        expected = n_rows_in(content, container)
        assert expected in (None, len(pool.rows)), about
        outcomes[container, "with drops" if dropped else "whole"] += 1
    return outcomes


def test_whatever_a_file_holds_every_row_is_accounted_for(tmp_path):
    outcomes = mutate_and_read(tmp_path, MUTATIONS)
    assert sum(outcomes.values()) == MUTATIONS
    # Else nothing would have been tried.
    for container in CONTAINERS:
        assert outcomes[container, "whole"] + outcomes[container, "with drops"]
        assert outcomes[container, "with drops"] + outcomes[container, "refused"]
    print(dict(sorted(outcomes.items())))
