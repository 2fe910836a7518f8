"""What Python and a notebook show of a thing: what it is, in a line; never what rows may do."""

import re
from html.parser import HTMLParser

import pytest

import gradsift as gs

THINGS = {
    "Pool": lambda run, world, finished: gs.load_pool(world / "data.jsonl"),
    "GradientStore": lambda run, world, finished: gs.read_store(run),
    "Run": lambda run, world, finished: gs.Run(run),
    "SelectResult": lambda run, world, finished: gs.select(run, budget=0.5),
    "Selection": lambda run, world, finished: gs.select(run, budget=0.5).selection,
    "Comparison": lambda run, world, finished: finished[0],
    "Agreement": lambda run, world, finished: gs.agreement(run, run),
    "AuditResult": lambda run, world, finished: gs.audit(run, progress=False),
    "Explanation": lambda run, world, finished: gs.explain(run, "r03"),
    "Stability": lambda run, world, finished: gs.stability(run, budget=0.5),
    "StrategiesResult": lambda run, world, finished: gs.strategies(run, budget=0.5),
    "ModelCheck": lambda run, world, finished: gs.check(str(world / "model")),
    "MemoryPlan": lambda run, world, finished: gs.plan(str(world / "model")),
    "ReferenceLossesResult": lambda run, world, finished: gs.reference_losses(run, progress=False),
}


@pytest.mark.parametrize("name", THINGS)
def test_a_thing_says_in_a_line_what_it_is(name, world, finished, fresh_run):
    shown = repr(THINGS[name](fresh_run, world, finished))
    assert re.match(rf"{name}\(.*\d.*\)$", shown), shown
    assert len(shown.replace(str(fresh_run), "").replace(str(world), "")) < 250


def test_a_folder_that_is_no_run_is_shown_all_the_same(tmp_path):
    assert repr(gs.Run(tmp_path)) == f"Run({tmp_path}, not captured yet)"
    (tmp_path / "manifest.json").write_text("{")
    assert repr(gs.Run(tmp_path)) == f"Run({tmp_path}, damaged)"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e&lt;"


def test_a_notebook_shows_tables_in_which_rows_are_text(world, finished, fresh_run):
    rows = [{"id": HOSTILE, "prompt": HOSTILE, "response": HOSTILE}, {"prompt": 1, "response": "a"}]
    plain = {"p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    things = [gs.load_pool(rows), gs.read_store(fresh_run), finished[0]]
    for thing in things:
        html = thing._repr_html_()
        seen = Tags(html)
        assert seen.tags <= plain
        assert seen.attributes == []
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)
        assert seen.text.strip().startswith(repr(thing)[:80])
    pool, store, comparison = (thing._repr_html_() for thing in things)
    assert "\\x1b" in pool
    assert "dropped: wrong_type" in pool
    assert "<td>loss</td>" in store
    assert all(f"<td>{arm}" in comparison for arm in ("base", "random", "grads"))
