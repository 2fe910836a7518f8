"""The demo with a tiny model in place of the embedded one."""

import json
from dataclasses import replace

from gradsift.commands import demo
from gradsift.training import model
from tiny import save_tiny


def test_the_demo_compares_on_rows_that_it_held_out(tmp_path, monkeypatch):
    tiny = save_tiny(tmp_path / "model")
    monkeypatch.setattr(model, "demo_model_path", lambda *_: tiny)
    monkeypatch.setattr(demo, "HELD_OUT_ROWS", 6)
    monkeypatch.setitem(demo.COMPARISON, "limit", 6)
    found = demo.demo(out=tmp_path / "run", rows=20, compare=True)
    assert "demo --compare" not in found.text()
    assert "demo --compare" in replace(found, comparison=None).text()
    summary = json.loads(json.dumps(found.summary()))["comparison"]
    assert list(summary["arms"]) == ["base", "full", "random 50%", "grads 50%"]
    # Six rows are few, and one training says nothing of how they differ; else there is no note.
    few_items, trained_once = summary["notes"]
    assert few_items.startswith("few items (")
    assert "trained once" in trained_once
    assert "Did grads 50% learn more than random 50%?" in found.text()
    pool, held_out = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in (demo.POOL_FILE, demo.HELD_OUT_FILE)
    )
    assert (len(pool), len(held_out)) == (20, 6)
    assert not {row["answer"] for row in pool} & {row["answer"] for row in held_out}
