from __future__ import annotations

import time

import pytest
import yaml

from gradsift.data.containers.sources import find_source
from gradsift.errors import GradsiftError
from gradsift.yaml_files import MOST_BYTES, parse_yaml, read_yaml_file

# Each level holds the one before it ten times.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 30)
)
# No level is deep where it is written.
LADDER = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [[*a{n - 1}]]\n" for n in range(1, 2000))

REFUSED = {
    "aliases of aliases": (BOMB, "more than 100000 values"),
    "merged again and again": (MERGED, "more than 100000 values"),
    "in itself": ("a: &a [*a]", "stands for what it stands in"),
    "in a mapping of itself": ("a: &a {b: {c: *a}}", "stands for what it stands in"),
    "1,500 maps": ("".join(" " * n + "a:\n" for n in range(1500)), "nested more than 100"),
    "100,000 lists": ("a: " + "[" * 100_000, "nested more than 100"),
    "100,000 dashes": ("- " * 100_000, "nested more than 100"),
    "100,000 keys": ("? " * 100_000, "nested more than 100"),
    "deep by aliases": (LADDER, "nested more than 100"),
    "long": ("a: b\n" * MOST_BYTES, "more than 2 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_take_forever_is_refused_at_once(name):
    text, message = REFUSED[name]
    before = time.process_time()
    with pytest.raises(GradsiftError, match=message):
        parse_yaml(text, "x.yaml")
    assert time.process_time() - before < 1


def test_a_large_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(20 * 2**30)
    with pytest.raises(GradsiftError, match=r"large\.yaml: not read: more than 2 MB"):
        read_yaml_file(path)


@pytest.mark.parametrize(
    "number", ["1" + ":1" * 200_000, "0x" + "f" * 200_000, "9" * 200_000, "1" * 200_000 + ".5"]
)
def test_a_number_of_many_digits_is_text(number):
    before = time.process_time()
    assert parse_yaml(f"a: {number}", "x.yaml") == {"a": number}
    assert time.process_time() - before < 1


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!function", "!f%75nction"])
def test_a_tag_of_code_is_refused(tag):
    with pytest.raises(GradsiftError, match=r"x\.yaml: not YAML: could not determine a constr"):
        parse_yaml(f"a: {tag} [echo]", "x.yaml")


def test_what_people_write_is_read():
    text = """
base: &base {lr: 1e-4, list: &list [1, 2]}
one: {<<: *base, lr: 2e-5}
two: [*base, *base, *list]
day: 2026-02-30
"""
    base = {"lr": 1e-4, "list": [1, 2]}
    assert parse_yaml(text, "x.yaml") == {
        "base": base,
        "one": {"lr": 2e-5, "list": [1, 2]},
        "two": [base, base, [1, 2]],
        "day": "2026-02-30",
    }
    plain = [{"a": [n, str(n), None, True]} for n in range(3000)]
    assert parse_yaml(yaml.safe_dump(plain), "x.yaml") == plain
    assert parse_yaml("[" * 99 + "1" + "]" * 99, "x.yaml")
    assert parse_yaml("", "x.yaml") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a is said twice, in line 1 and in line 3"),
        ("a: 1\n---\nb: 2", "a second YAML document begins in line 2"),
        ("a: [", "not YAML: .*line 1"),
        ("a: *b", "undefined alias"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, message):
    with pytest.raises(GradsiftError, match=message):
        parse_yaml(text, "x.yaml")


def test_a_bomb_in_a_dataset_card_is_passed_over_and_told(tmp_path, caplog):
    caplog.set_level("INFO", logger="gradsift")
    (tmp_path / "README.md").write_text(f"---\n{BOMB}---\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    before = time.process_time()
    assert find_source(str(tmp_path), None).name.endswith("rows.jsonl")
    assert time.process_time() - before < 1
    assert "README.md: line" in caplog.text
