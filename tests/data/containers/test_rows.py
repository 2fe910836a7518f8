import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradsift.data.containers.lines import Place
from gradsift.data.containers.rows import write_rows
from gradsift.data.containers.sources import find_source
from gradsift.data.pool import load_pool
from gradsift.errors import GradsiftError

ROWS = [{"prompt": f"q{i}", "response": f"a{i} é\u2028\nx"} for i in range(5)]


def places(pool, keep):
    return [
        Place(row.row if row.file is None else row.index_in_file, row.start, row.end, row.file)
        for row in pool.rows
        if keep(row)
    ]


def write_jsonl(path):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), "utf-8")


def write_json(path):
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), "utf-8")


def write_csv(path):
    lines = ["prompt,response"] + [f'{r["prompt"]},"{r["response"]}"' for r in ROWS]
    path.write_bytes("\r\n".join(lines).encode())


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS).replace_schema_metadata({"a": "b"}), path)


def write_arrow(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_disk(path):
    Dataset.from_list(ROWS).save_to_disk(str(path))


CONTAINERS = {
    "d.jsonl": write_jsonl,
    "d.json": write_json,
    "d.csv": write_csv,
    "d.parquet": write_parquet,
    "d.arrow": write_arrow,
    "d": write_disk,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_rows_go_out_as_they_came_in_in_the_same_container(tmp_path, name):
    path = tmp_path / name
    CONTAINERS[name](path)
    pool = load_pool(str(path))
    assert [row.example.messages[1]["content"] for row in pool.rows] == [
        r["response"] for r in ROWS
    ]
    out = write_rows(pool.source, places(pool, lambda row: row.row in (1, 3)), tmp_path / "out")
    again = load_pool(str(out))
    assert again.source.container == pool.source.container
    assert [row.example for row in again.rows] == [pool.rows[1].example, pool.rows[3].example]
    if name == "d.parquet":
        assert pq.read_schema(out).metadata[b"a"] == b"b"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extras=st.lists(st.tuples(json_values, st.text(min_size=1)), min_size=1, max_size=6),
    ascii_only=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]),
    bom=st.booleans(),
    last=st.booleans(),
    container=st.sampled_from(["jsonl", "json"]),
    pick=st.randoms(use_true_random=False),
)
def test_line_based_rows_are_the_same_bytes(
    tmp_path, extras, ascii_only, newline, bom, last, container, pick
):
    lines = [
        json.dumps({"text": f"x{text}", "extra": extra}, ensure_ascii=ascii_only)
        for extra, text in extras
    ]
    encoded = [line.encode("utf-8", "surrogatepass") for line in lines]
    if container == "jsonl":
        content = newline.encode().join(encoded) + (newline.encode() if last else b"")
    else:
        content = b"[" + b" ,\n".join(encoded) + b"]"
    path = tmp_path / f"d.{container}"
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + content)
    pool = load_pool(str(path))
    assert len(pool.rows) == len(lines)
    kept = {row.row for row in pool.rows if pick.random() < 0.5}
    out = write_rows(pool.source, places(pool, lambda row: row.row in kept), tmp_path)
    written = out.read_bytes()
    if container == "json":
        assert written == b"[" + b",".join(b"\n" + encoded[i] for i in sorted(kept)) + b"\n]\n"
    else:
        end = b"\r\n" if newline == "\r\n" else b"\n"
        ends = [end] * (len(lines) - 1) + [end if last else b"\n"]
        assert written == b"".join(encoded[i] + ends[i] for i in sorted(kept))


TRAPS = (
    b'\xef\xbb\xbf{"prompt": "p0", "response": "r0"}\r\n'
    b'{"prompt": "p1", "response": \r\n'
    b'{"prompt": "p2", "response": "  "}\r\n'
    b"\r\n"
    b'{"prompt": "p3", "response": "\xff"}\r\n'
    b"[1, 2]\r\n"
    b'{"prompt": "p5"}\r\n'
    b'{"prompt": "p0", "response": "r0", "more": 1}\r\n'
    b'{"prompt": "p7", "response": "r7"}'
)


def test_traps_of_jsonl(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(TRAPS)
    pool = load_pool(str(path))
    assert [(row.line, row.reason) for row in pool.rows] == [
        (1, None),
        (2, "unreadable_line"),
        (3, "empty_response"),
        (5, "unreadable_line"),
        (6, "not_an_object"),
        (7, "missing_field"),
        (8, None),
        (9, None),
    ]
    assert len({row.instance_id for row in pool.rows}) == 8
    assert pool.n_duplicate_texts == 1
    out = write_rows(pool.source, places(pool, lambda row: row.example is not None), tmp_path / "o")
    lines = TRAPS.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    assert out.read_bytes() == lines[0] + lines[7] + lines[8] + b"\n"
    assert any("line 2" in note for note in pool.notes())


def test_traps_of_csv(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(
        b'\xef\xbb\xbfquestion,answer\r\nq0,"a\r\n""0"""\r\nq1\r\n\r\nq2,\xff\r\nq3,"a,3"'
    )
    pool = load_pool(str(path))
    assert [(row.line, row.reason) for row in pool.rows] == [
        (2, None),
        (4, "unreadable_line"),
        (6, "unreadable_line"),
        (7, None),
    ]
    assert pool.rows[0].example.messages[1]["content"] == 'a\r\n"0"'
    out = write_rows(pool.source, places(pool, lambda row: row.example is not None), tmp_path / "o")
    assert out.read_bytes() == (b'\xef\xbb\xbfquestion,answer\r\nq0,"a\r\n""0"""\r\nq3,"a,3"\n')


def test_a_quoted_header_after_a_byte_order_mark_or_with_tabs(tmp_path):
    for name, content in {
        "d.csv": b'\xef\xbb\xbf"question","answer"\nq,a\n',
        "d.tsv": b'"question"\t"answer"\nq\ta\n',
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        pool = load_pool(str(path))
        assert pool.rows[0].example.messages[1]["content"] == "a"
        assert write_rows(pool.source, places(pool, bool), tmp_path / "o").read_bytes() == content


def test_a_row_that_is_no_csv_leaves_the_next_one_alone(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'question,answer\n"a\xff"x,b\nq,a\n')
    assert [row.reason for row in load_pool(str(path)).rows] == ["unreadable_line", None]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    path = tmp_path / "d.json"
    write_jsonl(path)
    assert load_pool(str(path)).source.container == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("d.txt", "x", {}, r"files ending in \.txt are not read"),
        ("d.jsonl", "", {}, "there are no rows"),
        ("d.jsonl", "{x\n{y", {}, "none of the 2 rows can be read; line 1: not JSON"),
        ("d.jsonl", '{"text": "x"}', {"split": "train"}, "no splits"),
        (
            "d.jsonl",
            '{"text": "x"}',
            {"train_on": "first"},
            "train_on.*'all' or 'last'",
        ),
        ("d.jsonl", '{"text": "x"}', {"dataset_info": "i", "format": "text"}, "leave out"),
        ("d.json", '{"data": [{"text": "x"}]}', {}, r"under 'data'.*jq"),
        ("d.json", '{\n"v": 1, "data": [\n{"text": "x"}]}', {}, r"under 'data'.*jq"),
        ("d.json", '{\n"text": "x"\n}', {}, "one object over several lines"),
        ("d.json", '[{"text": "x"}] x', {}, r"nothing after the array's \], found 'x'"),
        ("d.json", '[{"text": "x"},]', {}, "comma after the last element"),
        ("d.json", "[" * 100_000, {}, "not JSON"),
        ("d.csv", "\nquestion,answer\nq,a", {}, "line 1 is blank"),
        ("d.csv", "question,answer,answer\nq,a,b", {}, r"found twice: \['answer'\]"),
        ("d.csv", "question,answer\rq,a\r", {}, "Lines must end in"),
        ("d.jsonl", '{"a": 1}', {}, "fields \\['a'\\]"),
        ("d.jsonl", '{"text": ""}', {}, "none of the 1 rows is usable.*empty_response 1.*line 1"),
        ("d.jsonl", '{"text": "x"}', {"format": "nope"}, "known are prompt_completion"),
        ("d.jsonl", '{"text": "x"}', {"prompt_column": "x"}, "belong together"),
        ("d.json", '{"text": ', {}, "none of the 1 rows can be read"),
        ("d.json", '[{"text": "x"} {"text": "y"}]', {}, "expected a comma"),
        ("d.json", '[{"text": "x"', {}, "not JSON"),
        ("d.csv", "", {}, "file is empty"),
        ("d.csv", "question;answer\na;b\n", {}, "separated by ';'"),
        ("d.jsonl", '{"text": "x"}', {"id_column": "uid"}, "no row has the id field 'uid'.*text"),
        ("d.parquet", "no parquet", {}, "cannot be read as parquet"),
        ("d.arrow", "no arrow", {}, "cannot be read as arrow"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, options, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pool(str(path), **options)


def test_nothing_there():
    with pytest.raises(ValueError, match="there is no such file"):
        find_source("nowhere.jsonl", None)
    with pytest.raises(ValueError, match="there is no such file"):
        find_source("folder/data.jsonl", None)
    assert find_source("someone/some-data", None).container == "hub"
    assert find_source("teknium/OpenHermes-2.5", None).container == "hub"


def test_dataset_info(tmp_path):
    rows = [{"chat": [{"who": "H", "says": "hi"}, {"who": "G", "says": "yo"}]}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    entry = {
        "file_name": "d.json",
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "H", "assistant_tag": "G"},
    }
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"mine": entry, "odd": {**entry, "ranking": True}}))
    pool = load_pool("mine", dataset_info=str(info))
    assert pool.rows[0].example.messages == (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    )
    with pytest.raises(ValueError, match="no dataset 'other'; there are: mine, odd"):
        load_pool("other", dataset_info=str(info))
    with pytest.raises(ValueError, match="ranking"):
        load_pool("odd", dataset_info=str(info))


def test_a_split_has_to_be_named(tmp_path):
    from datasets import DatasetDict

    folder = tmp_path / "d"
    parts = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(parts).save_to_disk(str(folder))
    with pytest.raises(ValueError, match="splits train, test"):
        load_pool(str(folder))
    assert len(load_pool(str(folder), split="test").rows) == 1
    single = tmp_path / "single"
    Dataset.from_list(ROWS).save_to_disk(str(single))
    with pytest.raises(ValueError, match="has no splits"):
        load_pool(str(single), split="train")


@pytest.mark.parametrize(
    ("content", "rows", "said"),
    [
        (
            b'question,answer\nq0,a\nq1,"open\nq2,b\nq3,c\n',
            [(2, None), (3, "unreadable_line")],
            "a quote opened in line 3 is never closed: up to the end, line 5, 2 lines are taken",
        ),
        (
            b'question,answer\nq0,"open\nq1,b\nq2,"c"\nq3,d\n',
            [(2, "unreadable_line"), (5, None)],
            "a quote opened in line 2 is closed in line 4: 2 lines are taken for its text",
        ),
        (
            b'question,answer\nq0,"open\nq1,b,"\nq3,"d",e\nq4,f\n',
            [(2, None), (4, "unreadable_line"), (5, None)],
            "3 fields, the header has 2",
        ),
        (
            b'question,answer\n"q0\nq1",b,c\nq4,f\n',
            [(2, "unreadable_line"), (4, None)],
            "the header has 2; a quote opened in line 2 is closed in line 3: 1 line is taken",
        ),
        (b"question,answer\nq0,a\0b\nq1,b\n", [(2, "unreadable_line"), (3, None)], "a NUL byte"),
    ],
)
def test_a_quote_left_open_says_how_much_it_took(tmp_path, content, rows, said):
    (tmp_path / "d.csv").write_bytes(content)
    pool = load_pool(tmp_path / "d.csv")
    assert [(row.line, row.reason) for row in pool.rows] == rows
    (dropped,) = (row for row in pool.rows if row.reason)
    assert said in dropped.detail


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ([{"text": "x"} | dict.fromkeys(map(str, range(3000)))], {"id_column": "uid"}),
        ([{"text": "x"} | dict.fromkeys(map(str, range(3000)))], {"source_column": "uid"}),
        ([{"messages": [{"role": "x" * 10**6, "content": "y"}]}], {}),
        (["x" * 10**6], {}),
    ],
)
def test_no_message_is_as_long_as_the_data(tmp_path, content, options):
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_pool(tmp_path / "d.json", **options)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "noted"),
    [
        ('q0,"a0\nq1,a1\nq2,a2"\nq3,a3\n', True),
        ('q0,"a0\nand more\nq2,a2"\nq3,a3\n', False),
        ('q0,"a, b"\nq3,a3\n', False),
    ],
)
def test_a_stray_quote_that_is_closed_later_is_noted(tmp_path, content, noted):
    path = tmp_path / "d.csv"
    path.write_text("prompt,response\n" + content)
    pool = load_pool(path)
    assert len(pool.rows) == 2
    assert any("stray quote" in n and "the first is line 2" in n for n in pool.notes()) == noted


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_in_the_middle_is_no_row(tmp_path, mark):
    path = tmp_path / "d.csv"
    path.write_text(f"prompt, response\nq,a\n{mark}prompt,response\nr,b\n", encoding="utf-8-sig")
    rows = load_pool(path).rows
    assert [row.detail for row in rows] == [None, "the header again, as in files that were joined",
                                            None]  # fmt: skip


@pytest.mark.parametrize("mark", [";", "|"])
@pytest.mark.parametrize("answer", ["a", "a, b"])
def test_other_separators_are_named(tmp_path, mark, answer):
    path = tmp_path / "d.csv"
    path.write_text(f"prompt{mark}response\nq{mark}{answer}\n")
    with pytest.raises(GradsiftError, match=rf"separated by '\{mark}': save them with commas"):
        load_pool(path)


def test_a_mark_in_the_middle_is_no_part_of_its_line(tmp_path):
    line = json.dumps(ROWS[0]).encode() + b"\n"
    (tmp_path / "d.jsonl").write_bytes(line + b"\xef\xbb\xbf" + line)
    pool = load_pool(tmp_path / "d.jsonl")
    out = write_rows(pool.source, places(pool, lambda row: row.row == 1), tmp_path)
    assert not pool.dropped_by_reason
    assert out.read_bytes() == line


@pytest.mark.parametrize("name", ["empty.csv", "empty.json", "empty.jsonl"])
def test_an_empty_shard_has_no_rows(tmp_path, name):
    write_csv(tmp_path / "d.csv")
    (tmp_path / name).write_bytes(b"")
    assert len(load_pool(tmp_path).rows) == len(ROWS)
    with pytest.raises(GradsiftError, match=r"is empty|found nothing|no rows"):
        load_pool(tmp_path / name)


def test_lines_that_end_as_on_old_macs_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\r".join(json.dumps(row).encode() for row in ROWS))
    with pytest.raises(GradsiftError, match=r"lines end in \\r alone"):
        load_pool(tmp_path / "d.jsonl")


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("d.jsonl", '{"prompt":"你好","response":"好"}\n'), ("d.csv", "提示,回答\n你好,一\n")],
)
def test_encodings_without_a_mark(tmp_path, encoding, name, text):
    if name == "d.csv" and encoding.startswith("utf-32"):
        pytest.skip("nothing tells it")
    (tmp_path / name).write_bytes(text.encode(encoding))
    named = {"prompt_column": "提示", "response_column": "回答"} if name == "d.csv" else {}
    pool = load_pool(tmp_path / name, **named)
    assert pool.rows[0].example.messages[0]["content"] == "你好"


def test_many_bad_elements_take_no_longer_than_good_ones(tmp_path):
    good, bad = '{"text": "a b"}', '{"text": "a\tb"}'
    seconds = []
    for one in (good, bad):
        (tmp_path / "d.json").write_text("[" + ",\n".join([*[one] * 20_000, good]) + "]")
        start = time.perf_counter()
        rows = load_pool(tmp_path / "d.json").rows
        seconds.append(time.perf_counter() - start)
        assert sum(row.reason is None for row in rows) in (1, 20_001)
        assert rows[10].line == 11
    assert seconds[1] < 5 * seconds[0] + 1
