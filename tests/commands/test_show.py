"""Rows as people see them: show, explain with texts, and the first lines of select."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift.seals import read_json, write_json, write_parquet
from test_cli import invoke
from tiny import save_tiny

N = 40
ESCAPE = "\x1b[31mred\x1b[0m <script>alert(1)</script>\nline two"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("showing")
    model = str(save_tiny(folder / "model"))
    write_rows(folder / "data.jsonl", N)
    lines = (folder / "data.jsonl").read_text().splitlines()
    odd = [
        {"id": "escape", "prompt": ESCAPE, "response": ESCAPE * 40},
        {"id": "copy", **{k: json.loads(lines[3])[k] for k in ("prompt", "response")}},
        {"id": "empty", "prompt": "?", "response": " "},
    ]
    lines += [json.dumps(row) for row in odd]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    gs.capture(model, gs.load_pool(folder / "data.jsonl"), out=folder / "run")
    gs.select(folder / "run", budget=10, name="ten", strategy="loss-low")
    gs.select(folder / "run", budget=20, name="grads")
    gs.select(folder / "run", budget=10, name="drawn", strategy="random")
    return folder / "run"


def decisions(run, name):
    return pq.read_table(run / "selections" / name / "decisions.parquet").to_pylist()


@pytest.mark.parametrize("name", ["ten", "grads"])
def test_rows_stand_in_the_order_in_which_they_were_nearly_the_other(run, name):
    rows = {row["instance_id"]: row for row in decisions(run, name)}
    kept = gs.show(run, name=name, n=100)
    assert [row["rank"] for row in kept.rows] == list(range(1, len(kept.rows) + 1))
    rejected = gs.show(run, "rejected", name=name, n=100).rows
    worth = [row["marginal_gain"] if name == "grads" else -row["measure"] for row in rejected]
    assert worth == sorted(worth)
    assert {row["instance_id"] for row in (*kept.rows, *rejected)} | {"empty"} == set(rows)
    border = gs.show(run, "borderline", name=name, n=5).rows
    assert [row["selected"] for row in border] == [True] * 3 + [False] * 2
    assert border[2] == kept.rows[-1]
    assert border[3] == rejected[-1]
    assert [row["instance_id"] for row in gs.show(run, "dropped", name=name).rows] == ["empty"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda run: gs.explain(run, 0), "the row is 0, expected a text"),
        (lambda run: gs.explain(run, ["a"]), r"the row is \['a'\], expected a text"),
        (lambda run: gs.show(run, near=3), "the row is 3, expected a text"),
        (lambda run: gs.show(run, n="3"), "`n` is '3', expected a number of rows"),
        (lambda run: gs.show(run, n=0), "`n` is 0, expected a number of rows"),
    ],
)
def test_what_is_no_row_or_number_is_told(run, wrong, message):
    with pytest.raises(gs.GradsiftError, match=message):
        wrong(run)


def test_results_are_a_line_wherever_their_folder_is(run, tmp_path):
    shown = gs.show(run, name="ten", n=3)
    assert repr(shown) == f"Shown(3 rows of ten: {shown.what})"
    shutil.copytree(run, tmp_path / "run")
    selection = gs.select(tmp_path / "run", budget=3)
    assert "<table" in selection._repr_html_()
    (tmp_path / "run").rename(tmp_path / "moved")
    # None: a notebook shows the repr.
    assert selection._repr_html_() is None
    assert "SelectResult(3 of" in repr(selection)


def test_rows_near_to_one_are_shown_with_how_near_they_are(run):
    near = gs.show(run, near="copy", name="grads", n=4).rows
    assert [row["instance_id"] for row in near[:2]] == ["copy", json.loads(
        (run.parent / "data.jsonl").read_text().splitlines()[3])["id"]]  # fmt: skip
    assert [row["similarity"] for row in near] == sorted(r["similarity"] for r in near)[::-1]
    with pytest.raises(gs.GradsiftError, match="was dropped, so it is near to nothing"):
        gs.show(run, near="empty")


def test_what_data_says_does_nothing_to_the_terminal(run, capsys):
    for arguments in (
        ("show", run, "--near", "escape", "-n", "1", "--name", "grads"),
        ("explain", run, "escape", "--name", "grads"),
        ("select", run, "--budget", "42", "--name", "all"),
    ):
        code, out, err = invoke(capsys, *arguments)
        assert code == 0, err
        assert "\x1b" not in out + err
        assert all(len(line) <= 100 for line in out.splitlines() if line.startswith("  prompt"))
    code, out, _ = invoke(capsys, "show", run, "--near", "escape", "-n", "1", "--json")
    (row,) = json.loads(out)["rows"]
    assert (row["prompt"], row["response"]) == (ESCAPE, ESCAPE * 40)


def test_explain_shows_what_a_row_says_and_which_kept_row_it_repeats(run, capsys):
    of = json.loads((run.parent / "data.jsonl").read_text().splitlines()[3])
    gs.select(run, budget=41, name="most", gamma=20.0, beta=0.0)
    rejected = next(
        i
        for i in ("copy", of["id"])
        if not gs.explain(run, i, "most").decisions["most"]["selected"]
    )
    code, out, err = invoke(capsys, "explain", run, rejected, "--name", "most")
    assert code == 0, err
    assert (
        f"the kept row of most that it repeats, {({'copy', of['id']} - {rejected}).pop()}:" in out
    )
    assert out.count(f"  prompt  {of['prompt']}") == 2
    assert gs.explain(run, "escape").summary()["texts"]["escape"]["response"] == ESCAPE * 40


def test_a_selection_of_before_is_shown_with_the_texts_that_the_run_has_by_now(run, capsys):
    gs.select(run, budget=2, name="before")
    table = pq.read_table(run / "selections" / "before" / "decisions.parquet")
    table = table.drop_columns(["prompt", "response"])
    write_parquet(run / "selections" / "before" / "decisions.parquet", table)
    summary = read_json(run / "selections" / "before" / "selection.json")
    write_json(run / "selections" / "before" / "selection.json", summary | {"files": {}})
    code, out, err = invoke(capsys, "show", run, "--near", "escape", "--name", "before", "-n", "1")
    assert code == 0, err
    assert "escape itself" in out
    assert "  prompt  \\x1b[31mred" in out
    assert "not known" not in out
    _, out, _ = invoke(capsys, "show", run, "--borderline", "--name", "before", "-n", "2")
    assert "the last row kept, and the first row not kept" in out
    shutil.rmtree(run / "selections" / "before")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kept", "--near", "copy"), "--kept and --near: expected one of them"),
        (("--borderline", "--name", "drawn"), "these rows were drawn"),
        (("--name", "nope"), "no selection 'nope'"),
        (("--near", "nobody"), "no row 'nobody'"),
    ],
)
def test_what_cannot_be_shown_is_one_line(run, capsys, arguments, message):
    code, _, err = invoke(capsys, "show", run, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_select_says_first_what_was_kept_and_last_what_to_do_next(run, capsys, monkeypatch):
    arguments = ("select", run, "--budget", "10", "--strategy", "loss-low", "--name", "ten")
    code, out, err = invoke(capsys, *arguments)
    assert code == 0, err
    lines = out.splitlines()
    assert re.match(r"10 selected \+ 32 rejected \+ 1 dropped = 43 rows of the input .*; \d+ tokens"
                    r" in .*selected\.jsonl$", lines[0])  # fmt: skip
    assert lines[1].startswith("The kept rows are easier than the pool (median loss ")
    assert "warning: too easy: on average a kept row has a lower loss than" in lines[2]
    shown = [line.split()[0] for line in lines if line.startswith(("kept ", "rejected "))]
    assert shown == ["kept"] * 3 + ["rejected"] * 3
    assert "criterion" not in out
    assert f"next: gradsift show {run} --name ten" in out
    assert f"gradsift report {run} --name ten " in out
    again = f"gradsift select {run} --budget 10 --strategy loss-low --name ten --details --export"
    assert again in lines[-1]
    assert f"gradsift train {run} --arm loss-low --budget 10 " in out
    assert "--test HELD-OUT --budgets 10 --arms base,full,full-equal-steps,random,grads,loss-low" \
        in out  # fmt: skip
    code, out, err = invoke(capsys, *arguments, "--details")
    assert "traded away on purpose: loss-low does not go by it" in out
    assert "the last answer's words that are in its prompt" in out
    changed = gs.select(run, budget=10, name="other", score="high-norm", detrend=(), gamma=0.5)
    monkeypatch.chdir(run.parent)
    (run.parent / "keep.txt").write_text("escape\n")
    listed = gs.select(run, budget=10, name="listed", keep="keep.txt").text()
    assert f"--set keep={run.parent / 'keep.txt'}" in listed
    options = "--set score=high-norm --set detrend=none --set gamma=0.5"
    assert f"--arm grads --budget 10 {options}" in changed.text()
