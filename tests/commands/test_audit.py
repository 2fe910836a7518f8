"""Audit and gate, through the command line and Python, from one captured run."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift.commands import reference_losses as module
from gradsift.selection.gate import NO_TEXT, UNRELATED
from gradsift.store.tables import LOSS_NAMES, LOSSES_FOLDER, read_losses, write_losses
from test_cli import invoke
from tiny import save_tiny

N = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auditing")
    model = str(save_tiny(folder / "model"))
    write_rows(folder / "data.jsonl", N)
    lines = (folder / "data.jsonl").read_text().splitlines()
    # Strangers' text, which a terminal would obey.
    nasty = {"id": "r07", "prompt": "7?\x1b[31m", "response": "red\u202e blue\nwarning: green"}
    lines[7] = json.dumps(nasty)
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    pool = gs.load_pool(str(folder / "data.jsonl"))
    gs.capture(model, pool, out=folder / "bare", warmup_fraction=0.0)
    shutil.copytree(folder / "bare", folder / "run")
    gs.reference_losses(folder / "run")
    return folder


@pytest.fixture
def run(world, tmp_path):
    """A run whose first half is faulty, by losses that were made up."""
    return planted(shutil.copytree(world / "bare", tmp_path / "run"), range(N // 2))


def planted(run, faulty):
    store = gs.read_store(run)
    ids, n_tokens = store.instance_ids, store.n_response_tokens
    helps = np.where(np.isin(np.arange(N), list(faulty)), -3 - np.arange(N) / N, 30) / n_tokens
    losses = {name: np.full(N, 4.0) for name in LOSS_NAMES}
    losses |= {"text": np.full(N, 9.0), "response": 4 - helps}
    losses["mismatched_again"] = 4 - np.linspace(-1, 1, N) / n_tokens
    write_losses(run, gs.Run(run).losses_made_from, ids, losses)
    return run


def test_an_untrained_model_can_tell_no_row_from_any_other(world):
    """The negative control: random weights, so that no prompt helps."""
    found = gs.audit(world / "run")
    share = found.gate.unrelated_share
    assert share.estimate > 0.6
    assert share.high > 0.9
    assert found.gate.n_passing < 0.4 * N


def test_audit_names_the_worst_rows_and_says_how_sure_it_is(capsys, run):
    code, out, err = invoke(capsys, "audit", run, "--n", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["gate"]["n_named"] == {UNRELATED: N // 2, NO_TEXT: 0}
    assert found["gate"]["unrelated_share"]["estimate"] == pytest.approx(1.0)
    assert [row["instance_id"] for row in found["named"]] == ["r29", "r28", "r27"]
    assert found["named"][0] == {
        "instance_id": "r29",
        "place": "line 30",
        "reason": UNRELATED,
        "detail": found["named"][0]["detail"],
        "advantage": pytest.approx(-3 - 29 / N),
        "p": 1.0,
        "loss": 4.0,
        "prompt": "29?",
        "answer": found["named"][0]["answer"],
    }
    # The share of near-duplicates is that of the selection's own report.
    selection = gs.select(run, budget=20, name="beside")
    assert found["duplicate_share"] == selection.selection.audit.duplicate_share[0]
    code, out, _ = invoke(capsys, "audit", run, "--n", "60")
    assert code == 0
    assert "named for that, at p > 0.2: 30 rows, about 0 of them good" in out
    assert "pass: 30 rows (50 %)" in out
    assert "about 0 of 60 judged answers fit their prompt" in out
    assert f"{UNRELATED}, the worst:" in out
    assert "r07 (line 8): its own prompt makes it less likely than another row's by 3.1 nats" in out
    assert "    prompt: 7?\\x1b[31m" in out
    assert "    answer: red\\u202e blue warning: green" in out
    assert not {"\x1b", "\u202e"} & set(out)
    code, _, err = invoke(capsys, "audit", run, "--n", "-1")
    assert code == 2


def test_a_higher_threshold_names_fewer(run):
    assert gs.audit(run).gate.n_passing == 30
    assert gs.audit(run, gate_threshold=0.999).gate.n_passing == 30
    (run / "losses/part-00000.parquet").unlink()
    planted(run, ())
    assert (
        gs.audit(run, gate_threshold=0.01).gate.n_passing
        == N - gs.audit(run, gate_threshold=0.01).gate.summary()["n_named"][UNRELATED]
    )
    with pytest.raises(gs.GradsiftError, match="gate_threshold"):
        gs.audit(run, gate_threshold=1.0)


def test_audit_computes_the_losses_that_are_missing(world, tmp_path, capsys, monkeypatch):
    bare = shutil.copytree(world / "bare", tmp_path / "run")
    code, out, err = invoke(capsys, "audit", bare, "--json")
    assert code == 0, err
    assert "the audit needs reference losses: four forward passes over all rows" in err
    expected = gs.audit(world / "run").summary()
    found = json.loads(out)
    assert found["gate"] == json.loads(json.dumps(expected["gate"]))
    # And those that it had before are enough.
    monkeypatch.setattr(module, "load_model", None)
    assert gs.audit(bare).summary()["gate"] == expected["gate"]


def test_losses_of_an_earlier_gradsift_are_computed_anew(world, tmp_path, capsys):
    bare = shutil.copytree(world / "run", tmp_path / "run")
    path = bare / LOSSES_FOLDER / "part-00000.parquet"
    table = pq.read_table(path).select(["instance_id", "response", "alone", "text"])
    pq.write_table(table.replace_schema_metadata(None), path)
    code, _, err = invoke(capsys, "select", bare, "--budget", "5", "--strategy", "ifd-loss")
    assert code == 2
    assert err.count("\n") == 1
    assert "earlier gradsift" in err
    assert "gradsift reference-losses" in err
    code, out, err = invoke(capsys, "reference-losses", bare, "--json")
    assert code == 0, err
    assert err.count("the losses of 60 rows are of an earlier gradsift") == 1
    assert json.loads(out)["n_computed"] == N
    ids, made_from = gs.read_store(bare).instance_ids, gs.Run(bare).losses_made_from
    expected = read_losses(world / "run", ids, made_from)
    for name, values in read_losses(bare, ids, made_from).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["grads", "random"])
def test_the_gate_drops_rows_with_a_reason_and_the_counts_add_up(capsys, run, strategy):
    code, out, err = invoke(
        capsys, "select", run, "--budget", "25%", "--strategy", strategy, "--gate", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["selected"], found["rejected"], found["dropped"]) == (15, 15, 30)
    assert found["dropped_by_reason"] == {UNRELATED: 30}
    assert found["gate"]["unrelated_share"]["estimate"] == pytest.approx(1.0)
    assert found["warnings"] == [line for line in found["warnings"] if "budget" not in line]
    decisions = pq.read_table(run / "selections" / f"{strategy}-25pct-gate" / "decisions.parquet")
    rows = decisions.to_pylist()
    assert {row["instance_id"] for row in rows if row["decision"] == "dropped"} == {
        f"r{i:02d}" for i in range(30)
    }
    code, out, err = invoke(capsys, "explain", run, "r07")
    assert code == 0, err
    assert (
        f"dropped: {UNRELATED}: its own prompt makes it less likely than another row's by 3.1 nats"
        in out
    )
    code, out, err = invoke(capsys, "explain", run, "r40")
    assert code == 0, err
    assert (
        "its own prompt makes it likelier than another row's by 30.0 nats; a third row's "
        "does as well or better in 2 % of the pairs (p 0.02)" in out
    )


def test_too_large_a_budget_is_told_with_and_without_the_gate(capsys, run, tmp_path):
    code, out, _ = invoke(capsys, "select", run, "--budget", "75%", "--gate")
    assert code == 0
    assert "30 selected + 0 rejected + 30 dropped = 60" in out
    assert (
        "warning: budget 75% asks for 45 rows, but only 30 rows pass the gate and may be taken"
        in out
    )
    code, out, _ = invoke(capsys, "select", run, "--budget", "75%", "--name", "plain")
    assert code == 0
    assert "warning: 45 rows are more than the good ones" in out
    assert "--gate drops them" in out
    # The list of rows to keep goes before.
    keep = tmp_path / "keep.txt"
    keep.write_text("r03\nr40\n")
    code, out, err = invoke(
        capsys, "select", run, "--budget", "20", "--gate", "--keep", keep, "--name", "kept"
    )
    assert code == 0, err
    assert "warning: the gate names 1 row that --keep keeps all the same: ['r03']" in out


def test_auto_takes_all_that_passed(run):
    found = gs.select(run, budget="auto", strategy="random", gate=True)
    assert set(found.ids) == {f"r{i}" for i in range(30, 60)}
    # And other rules that look at the whole pool take the gate, too.
    gs.strategies(run, budget="25%", names=("random", "longest"), gate=True)
    gs.stability(run, budget="25%", strategy="random", gate=True)


def test_an_arm_may_have_a_gate(run, caplog):
    from gradsift.comparison.arms import needs_of_arms, parse_arms, rows_of
    from gradsift.config import SelectionConfig

    arms = parse_arms(["random@50%:gate=true", "random@75%:gate=true", "random@75%"], [], 2)
    base, run = SelectionConfig(), gs.Run(run)
    assert {need.name for need in needs_of_arms(arms, base)} == {"REFERENCE_LOSSES"}
    rows = rows_of(run, arms, base)
    good = {f"r{i}" for i in range(30, 60)}
    assert set(rows(arms[0], 0)) == set(rows(arms[1], 1)) == good
    assert not set(rows(arms[2], 0)) <= good
    assert [record.message for record in caplog.records if "pass the gate" in record.message] == [
        "arm 'random@75%:gate=true': budget 75% asks for 45 rows, but only 30 rows pass the gate "
        "and may be taken: all of them are"
    ]


def test_what_it_needs_is_said_and_run_computes_it(world, tmp_path, capsys):
    bare = shutil.copytree(world / "bare", tmp_path / "run")
    code, _, err = invoke(capsys, "select", bare, "--budget", "5", "--gate")
    assert code == 2
    assert "have no reference losses. Compute them with: gradsift reference-losses" in err
    code, out, err = invoke(
        capsys, "run", world / "data.jsonl", "--model", world / "model", "--out", tmp_path / "new",
        "--budget", "auto", "--strategy", "random", "--gate", "--set", "warmup_fraction=0",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["selected"] + found["dropped"] == N
    named = found["gate"]["n_named"]
    assert found["dropped_by_reason"] == {reason: n for reason, n in named.items() if n}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"mismatched": np.nan, "text": 4.0}, "0 of 60 rows have a prompt"),
        ({"mismatched": np.nan}, "of 60 rows with a prompt 60 have the same"),
    ],
)
def test_where_it_cannot_say_audit_says_so_and_the_gate_refuses(
    world, tmp_path, capsys, losses, said
):
    run = shutil.copytree(world / "bare", tmp_path / "run")
    ids = gs.read_store(run).instance_ids
    values = {name: np.full(N, 4.0) for name in LOSS_NAMES} | {"text": np.full(N, 5.0)}
    values |= {name: np.full(N, value) for name, value in losses.items()}
    write_losses(run, gs.Run(run).losses_made_from, ids, values)
    code, out, err = invoke(capsys, "audit", run)
    assert code == 0, err
    assert "\nwhether answers depend on their prompts cannot be told" in out
    assert said in out
    assert "named for that" not in out
    assert json.loads(invoke(capsys, "audit", run, "--json")[1])["gate"] is None
    code, _, err = invoke(capsys, "select", run, "--budget", "5", "--gate")
    assert code == 2
    assert said in err
    # Without the gate nothing is said of it.
    assert invoke(capsys, "select", run, "--budget", "5")[0] == 0


def test_side_by_side_and_stability_count_what_passes(run):
    side_by_side = gs.strategies(run, budget=15, names=("random", "longest"), gate=True)
    assert side_by_side.n_open == 30
    assert "gate, quotas and lists leave 30 of 60 rows" in side_by_side.text()
    stability = gs.stability(run, budget=15, gate=True)
    # Half of those that pass: of two such subsets a third of either are in both.
    assert stability.by_chance == pytest.approx(1 / 3)
    assert "gate, quotas and lists leave 30 of 60 rows" in stability.text()
    assert "leave" not in gs.stability(run, budget=15).text()
