"""Selecting by every strategy through the command line and Python, from one captured run."""

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift import reference_losses, run_folder, stability, strategies
from gradsift.config import SelectionConfig
from gradsift.selection import neighbours as graph
from gradsift.selection import selector
from gradsift.selection.candidates import Need
from gradsift.selection.scores import SCORES
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.store.tables import NEIGHBOURS_NAME, TEXTS_NAME, write_texts
from gradsift.terms import LAYERS
from test_cli import invoke
from tiny import save_tiny

N = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selecting")
    model = str(save_tiny(folder / "model"))
    write_rows(folder / "data.jsonl", N)
    write_rows(folder / "other.jsonl", 8, offset=50)
    gs.capture(model, gs.load_pool(str(folder / "data.jsonl")), out=folder / "run")
    gs.capture(model, gs.load_pool(str(folder / "data.jsonl")), out=folder / "seed1", seed=1)
    other = gs.load_pool(str(folder / "other.jsonl"))
    gs.capture(model, other, out=folder / "other", record_at="after", warmup_fraction=0.0)
    reference_losses(folder / "run")
    return folder


def decisions(run, name):
    return pq.read_table(run / "selections" / name / "decisions.parquet").to_pylist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_selects_and_explains(capsys, world, strategy):
    run = world / "run"
    code, out, err = invoke(
        capsys, "select", run, "--budget", "25%", "--strategy", strategy,
        "--set", f"anchor={world / 'other'}", "--set", f"target={world / 'other'}", "--json",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["selected"], summary["rejected"]) == (10, 30)
    name = Path(summary["selection"]).name
    assert name.startswith(f"{strategy}-25pct-anchor-")
    rows = decisions(run, name)
    kept = [row["instance_id"] for row in rows if row["selected"]]
    lines = Path(summary["selected_file"]).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == kept
    for row_id in (kept[0], next(row["instance_id"] for row in rows if not row["selected"])):
        code, out, err = invoke(capsys, "explain", run, row_id, "--name", name)
        assert code == 0, err
        assert "kept" in out or "drawn" in out


def test_decisions_say_what_the_rows_say(world, tmp_path, log):
    """Texts come from the capture; of runs of before from the rows, once; else they are null."""
    run, data = Path(shutil.copytree(world / "run", tmp_path / "run")), world / "data.jsonl"
    shutil.rmtree(run / "selections", ignore_errors=True)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    gs.select(run, budget=5, name="stored")
    said = decisions(run, "stored")
    assert [(row["prompt"], row["response"]) for row in said] == [
        (row["prompt"], row["response"]) for row in rows
    ]
    loss, cluster = gs.Run(run).store.loss, gs.Run(run).content[1]
    assert [row["loss"] for row in said] == loss.tolist()
    assert [row["cluster"] for row in said] == cluster.tolist()
    assert all(row["n_response_tokens"] > 0 and row["own_id"] is None for row in said)
    texts = run / TEXTS_NAME
    for harm in (texts.unlink, lambda: texts.write_bytes(b"{broken")):
        harm()
        gs.select(run, budget=5, name="again")
        assert decisions(run, "again") == said
        assert texts.read_bytes() != b"{broken"
    # An edited one is not believed, whatever its metadata says.
    log.clear()
    table = pq.read_table(texts)
    turned = pa.chunked_array([table["response"][1:].combine_chunks(), table["response"][:1]
                               .combine_chunks()])  # fmt: skip
    at = table.column_names.index("response")
    edited = table.set_column(at, table.schema.field(at), turned)
    pq.write_table(edited.replace_schema_metadata(table.schema.metadata), texts)
    gs.select(run, budget=5, name="again")
    assert decisions(run, "again") == said
    assert any("texts.parquet: damaged or changed" in line for line in log)
    # Texts of another pool are not taken for those of this one.
    write_texts(run, "another", pq.read_table(texts).slice(1))
    gs.select(run, budget=5, name="again")
    assert decisions(run, "again") == said
    # What a loop recorded has no settings that say how its rows are read.
    texts.unlink()
    (run / "config.yaml").unlink()
    log.clear()
    gs.select(run, budget=5, name="again")
    assert any("texts are left out" in line for line in log)
    assert {row["response"] for row in decisions(run, "again")} == {None}
    assert decisions(run, "again")[3]["loss"] == said[3]["loss"]


def test_selections_are_named_by_what_differs_and_the_next_command_is_the_same(capsys, world):
    run = world / "run"
    names = [
        gs.select(run, budget=budget, **settings).folder.name
        for budget, settings in (
            ("30%", {}),
            (12, {"similarity_threshold": 0.9}),
            ("30%", {"strategy": "random", "seed": 3}),
            ("30%", {"score": "high-norm", "alpha": 0.5}),
            ("30%", {"quota": {"book": 3}}),
        )
    ]
    assert names[:4] == [
        "grads-30pct", "grads-12-similarity_threshold-0.9", "random-30pct-seed-3",
        "grads-30pct-score-high-norm-alpha-0.5",
    ]  # fmt: skip
    assert re.fullmatch(r"grads-30pct-quota-\w{8}", names[4])
    code, out, err = invoke(
        capsys, "select", run, "--budget", "30%", "--strategy", "random", "--set", "seed=4"
    )
    assert code == 0, err
    (last,) = re.findall(r"gradsift (select .*--details) --export trl  ", out)
    code, again, err = invoke(capsys, *shlex.split(last))
    assert code == 0, err
    assert again.splitlines()[0] == out.splitlines()[0]
    assert len(again.splitlines()) > len(out.splitlines()) + 5


def test_side_by_side_has_every_strategy_that_can_be_had(capsys, world):
    run = world / "run"
    code, out, err = invoke(capsys, "strategies", run, "--budget", "25%", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["left_out"]) == {"ogs-static", "target-similarity", "target-turns", "rds"}
    assert set(found["strategies"]) == set(STRATEGIES) - set(found["left_out"])
    assert found["overlap"]["grads"]["grads"] == 1
    both = found["overlap"]["grads"]["random"], found["overlap"]["random"]["grads"]
    assert both[0] == both[1] < 1
    chosen = strategies(run, budget="25%", names=("grads", "loss-low"), score="high-norm")
    assert [outcome.strategy for outcome in chosen.outcomes] == ["grads", "loss-low"]
    assert "overlap" in chosen.text()
    subset = set(gs.select(run, budget="25%", strategy="loss-low").ids)
    other = gs.select(run, budget="25%", score="high-norm", name="high-norm").selection
    expected = len(subset & set(other.ids)) / len(subset | set(other.ids))
    assert chosen.overlap_KK[0, 1] == pytest.approx(expected)


def test_stability_compares_with_other_choices_and_other_captures(capsys, world):
    run = world / "run"
    arguments = ("--budget", "25%", "--other", world / "seed1", "--other", run)
    code, out, err = invoke(capsys, "stability", run, *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["by_chance"] == pytest.approx(0.25 / 1.75)
    assert found["overlaps"][f"run {run}"] == 1
    assert 0 < found["overlaps"][f"run {world / 'seed1'}"] < 1
    assert {"score prompt-gain", "layer lm_head alone", "not detrended", "beta 0", "seed 1"} <= set(
        found["overlaps"]
    )
    assert "chance" in stability(run, budget=10).text()
    code, _, err = invoke(capsys, "stability", run, "--budget", "25%", "--other", world / "other")
    assert code == 2
    assert "has other rows (0 of 40 are shared)" in err


def test_what_is_in_memory_is_not_found_again(world, monkeypatch):
    """Many selections: one set of candidates, neighbours and clusters; one density a signal."""
    calls = Counter()

    def count(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.update([name]) or real(*a, **k))

    once = ("find_neighbours", "find_clusters", "Candidates", "read_pool_table", "read_store")
    for name in once:
        count(run_folder, name)
    count(selector, "estimate_density")
    # There are no reference losses here, and sketches are not read for it.
    scores = [score for score in SCORES.values() if not score.needs]
    # Other scores, each layer alone, not detrended, three coefficients of 0, another seed.
    n_changes = (len(scores) - 1) + len(LAYERS) + 1 + 3 + 1
    assert len(stability(world / "seed1", budget=10).overlaps) == n_changes
    # As asked, each layer alone, not detrended: the density is the same for all scores.
    assert calls == dict.fromkeys(once, 1) | {"estimate_density": 1 + len(LAYERS) + 1}


def test_auto_keeps_its_curve(capsys, world):
    code, out, err = invoke(capsys, "select", world / "run", "--budget", "auto", "--json")
    assert code == 0, err
    found = json.loads(out)
    curve = pq.read_table(world / "run/selections/grads-auto/curve.parquet")["marginal_gain"]
    assert len(curve) == N
    rows = decisions(world / "run", "grads-auto")
    by_rank = sorted((r["rank"], r["marginal_gain"]) for r in rows if r["selected"])
    assert [gain for _, gain in by_rank] == curve.to_pylist()[: found["selected"]]


def test_it_is_said_how_much_of_each_possible_gain_a_subset_attains(capsys, world):
    arguments = ("select", world / "run", "--budget", "30%", "--name", "attained", "--details")
    code, out, err = invoke(capsys, *arguments)
    assert code == 0, err
    assert "of what each alone could gain over a random subset: " in out
    assert "variance 1 in every direction over this pool" in out
    summary = json.loads(invoke(capsys, *arguments, "--json")[1])
    assert set(summary["attained"]) == set(summary["scale"])
    for name, share in summary["attained"].items():
        words = {"gradient": "the gradient score", "diversity": "content diversity"}
        said = f"{100 * share:.0f} % of {words.get(name, 'similarity reduction')}"
        assert said in out
    code, out, err = invoke(capsys, "select", world / "run", "--budget", "100%", "--details")
    assert code == 0, err
    assert "content diversity can gain nothing over a random subset here" in out


def test_the_papers_reading_is_a_preset_and_what_is_said_beside_it_wins(capsys, world):
    run = world / "run"
    code, out, err = invoke(
        capsys, "select", run, "--budget", "25%", "--preset", "paper", "--name", "paper", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["preset"] == "paper"
    saved = json.loads((run / "selections/paper/selection.json").read_text())["settings"]
    assert (saved["score"], saved["detrend"]) == ("density", [])
    one_by_one = {"score": "density", "detrend": "none", "layers": LAYERS}
    spelt = gs.select(run, budget="25%", **one_by_one, name="spelt")
    named = gs.select(run, budget="25%", preset="paper", name="named")
    assert named.ids == spelt.ids
    # Under one name they are the same selection.
    assert gs.select(run, budget="25%", **one_by_one, name="paper").ids == named.ids
    mixed = gs.select(run, budget="25%", preset="paper", score="low-norm", name="mixed").selection
    assert (mixed.config.score, mixed.config.detrend) == ("low-norm", ())
    code, _, err = invoke(capsys, "select", run, "--budget", "25%", "--preset", "papr")
    assert code == 2
    assert "--preset is 'papr'" in err


def test_lists_and_quotas_from_files(capsys, world, tmp_path):
    keep, drop = tmp_path / "keep.txt", tmp_path / "drop.jsonl"
    keep.write_text("\ufeffr07\n\nr11\n", encoding="utf-8")
    drop.write_text('{"id": "r00", "prompt": "x"}\n')
    run = world / "run"
    arguments = ("--keep", keep, "--drop", drop, "--quota", "book=2", "--quota", "forum=50%")
    code, out, err = invoke(
        capsys, "select", run, "--budget", "12", *arguments, "--name", "lists", "--json"
    )
    assert code == 0, err
    rows = decisions(run, "lists")
    kept = {row["instance_id"] for row in rows if row["selected"]}
    assert {"r07", "r11"} <= kept
    assert "r00" not in kept
    sources = Counter("book" if int(i[1:]) % 4 == 0 else "forum" for i in kept)
    assert 0 < sources["book"] <= 2
    audit = json.loads(out)["audit"]["sources"]["counts"]
    assert {name: counts["subset"] for name, counts in audit.items()} == sources


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "ogs-static"], "needs a retention anchor: --set anchor"),
        (["--strategy", "rds"], "needs a target set: --set target"),
        (["--strategy", "rds", "--set", "target={seed1}"], "was captured with seed 1, but"),
        (["--strategy", "rds", "--set", "target={model}"], "no gradient store here"),
        (["--strategy", "best"], "grads, random"),
        (["--budget", "auto", "--strategy", "el2n"], "budget auto looks at marginal gains"),
        (["--quota", "book"], "--quota book: expected SOURCE=500"),
        (["--quota", "blog=3"], "there is none of that name; there are 'book', 'forum'"),
        (["--keep", "{model}"], "--keep"),
        (["--keep", "{data}"], "10 of 40 fit"),
        (["--set", "detrend=width"], "detrend"),
        (["--set", "signal_statistics=norm"], "expected one or more of max, min"),
        (["--set", "similarity_threshold=1"], "similarity_threshold is 1"),
        (["--set", "alpha=0", "--set", "beta=0", "--set", "gamma=0"], "nothing to maximise"),
    ],
)
def test_a_mistake_is_one_line(capsys, world, arguments, message):
    places = {name: world / name for name in ("seed1", "model")}
    places["data"] = world / "data.jsonl"
    given = [argument.format(**places) for argument in arguments]
    budget = [] if "--budget" in given else ["--budget", "25%"]
    code, out, err = invoke(capsys, "select", world / "run", *budget, *given, "--name", "mistake")
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (world / "run/selections/mistake").exists()


def test_strategies_that_need_reference_losses_say_so_and_run_computes_them(
    capsys, world, tmp_path
):
    code, _, err = invoke(
        capsys, "select", world / "seed1", "--budget", "25%", "--strategy", "ifd-loss"
    )
    assert code == 2
    assert "have no reference losses. Compute them with: gradsift reference-losses" in err
    code, out, err = invoke(
        capsys, "run", world / "data.jsonl", "--model", world / "model", "--out", tmp_path / "run",
        "--budget", "25%", "--score", "prompt-gain", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "needs reference losses" in err
    code, _, again = invoke(
        capsys, "run", world / "data.jsonl", "--model", world / "model", "--out", tmp_path / "run",
        "--budget", "25%", "--score", "prompt-gain", "--json",
    )  # fmt: skip
    assert code == 0, again
    assert "needs reference losses" not in again
    assert json.loads(out)["selected"] == 10
    code, out, err = invoke(capsys, "reference-losses", tmp_path / "run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["n_instances"], found["n_computed"]) == (N, 0)


def test_reference_losses_resume(world, tmp_path, monkeypatch):
    from gradsift.commands import reference_losses as module

    run = tmp_path / "run"
    model = str(world / "model")
    gs.capture(model, gs.load_pool(str(world / "data.jsonl")), out=run, seed=3)
    monkeypatch.setattr(module, "ROWS_IN_A_PART", 16)

    calls = []

    def stop_in_the_second_part(*_):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference_losses(run, progress=stop_in_the_second_part)
    found = reference_losses(run)
    assert (found.n_instances, found.n_computed) == (N, N - 16)
    from gradsift.store.tables import read_losses

    ids = gs.read_store(run).instance_ids
    made_from = gs.Run(run).losses_made_from
    again = read_losses(run, ids, made_from)
    # The untrained model is the same for every seed.
    for name, values in read_losses(world / "run", ids, made_from).items():
        np.testing.assert_allclose(again[name], values, rtol=1e-5)


def test_neighbours_are_found_once_and_again_for_another_store(world, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "COMPLETE_ROWS", 10)
    run = tmp_path / "run"
    gs.capture(str(world / "model"), gs.load_pool(str(world / "data.jsonl")), out=run)
    calls = []
    find = run_folder.find_neighbours
    monkeypatch.setattr(
        run_folder,
        "find_neighbours",
        lambda x: calls.append(1) or find(x, complete_rows=10, n_neighbours=6),
    )
    first = gs.select(run, budget="25%").selection.ids
    assert (run / NEIGHBOURS_NAME).exists()
    gs.select(run, budget="50%")
    assert gs.select(run, budget="25%", name="again").selection.ids == first
    assert len(calls) == 1
    monkeypatch.setattr(run_folder, "_MADE_BY", "another way")
    gs.select(run, budget="25%", name="other")
    assert len(calls) == 2


def test_a_copy_is_named_by_explain(capsys, world):
    code, out, err = invoke(capsys, "select", world / "run", "--budget", "20", "--name", "copies")
    assert code == 0, err
    code, out, _ = invoke(capsys, "explain", world / "run", "r05", "--name", "copies", "--json")
    near = json.loads(out)["selections"]["copies"]["near_duplicates"]
    assert near[0]["instance_id"] == "r01"
    assert near[0]["similarity"] == pytest.approx(1, abs=0.01)


def test_a_rejected_row_would_be_kept_with_the_score_that_explain_says(capsys, world):
    run = world / "run"
    code, _, err = invoke(capsys, "select", run, "--budget", "10", "--name", "whatif")
    assert code == 0, err
    rows = decisions(run, "whatif")
    last = max(rows, key=lambda row: row["rank"] or 0)
    summary = json.loads((run / "selections/whatif/selection.json").read_text())
    tried = 0
    for row in rows:
        if row["selected"]:
            continue
        explained = gs.explain(run, row["instance_id"], "whatif").decisions["whatif"]["what_if"]
        if "would be kept with a gradient score above" not in explained:
            continue
        needed = float(explained.split("above ")[1].split(" ")[0])
        more = (needed - row["gradient_score"]) / summary["scale"]["gradient"]
        assert row["marginal_gain"] + more == pytest.approx(last["marginal_gain"], abs=1e-3)
        tried += 1
    assert tried > 3


def test_a_moved_run_of_rows_from_memory_keeps_its_own(tmp_path):
    model, run, moved = str(save_tiny(tmp_path / "model")), tmp_path / "run", tmp_path / "moved"
    rows = [{"id": i, "prompt": f"{i}", "response": f"red {i}"} for i in range(4)]
    rows[1]["id"] = 0
    gs.capture(model, gs.load_pool(rows), out=run)
    run.rename(moved)
    gs.capture(model, gs.load_pool(rows[2:]), out=run)
    assert len(gs.select(moved, budget=4, strategy="random").ids) == 4
    keep = tmp_path / "keep.jsonl"
    keep.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(gs.GradsiftError, match="several rows have the id '0'"):
        gs.select(moved, budget=2, keep=keep)


@pytest.mark.parametrize("within", ["pool", "cluster"])
def test_scores_are_joined_by_name(capsys, world, within):
    run, name = world / "run", f"joined-{within}"
    code, out, err = invoke(
        capsys, "select", run, "--budget", "25%", "--name", name, "--json",
        "--score", "prompt-gain+low-norm", "--set", f"rank_within={within}",
        "--set", "beta=0", "--set", "gamma=0",
    )  # fmt: skip
    assert code == 0, err
    kept = next(row for row in decisions(run, name) if row["selected"])
    words = " of its cluster" * (within == "cluster")
    assert f"% of the rows{words}, the lowest of its scores" in kept["reason"]
    code, out, err = invoke(capsys, "explain", run, kept["instance_id"], "--name", name)
    assert code == 0, err
    assert "the lowest of its scores" in out


def test_target_rows_know_their_sources(world):
    context = gs.Run(world / "run").context(
        SelectionConfig(target=str(world / "other")), {Need.TARGET}
    )
    reference = context.references[Need.TARGET]
    assert list(reference.source) == gs.Run(world / "other").candidates().source
    assert len(reference.source) == len(reference.features_MD) == 8


def test_a_threshold_without_the_gate_is_told(world):
    found = gs.select(world / "run", budget=9, gate_threshold=0.4, name="no-gate")
    assert "`gate_threshold` does nothing without `gate`: nothing is dropped" in found.warnings
    found = gs.select(world / "run", budget=9, name="no-threshold")
    assert not any("does nothing" in line for line in found.warnings)
