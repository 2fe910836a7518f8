"""The page of a selection: in a real browser, from hostile rows, and as `select` writes it."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift.errors import GradsiftError
from gradsift.reporting import page
from gradsift.seals import read_json, write_json
from test_cli import invoke
from tiny import save_tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
N = 60
HOSTILE = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2>\u2028<b>`${1}`"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of two sources, one row of which says what a page must not do."""
    folder = tmp_path_factory.mktemp("report")
    write_rows(folder / "data.jsonl", N)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows[7] |= {"id": HOSTILE, "prompt": HOSTILE, "source": HOSTILE}
    rows[8]["id"] = "{odd"
    rows[11]["source"] = "__proto__"
    rows[9]["response"] = ""  # Dropped.
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny(folder / "model")
    gs.capture(model, gs.load_pool(str(folder / "data.jsonl")), out=folder / "run")
    gs.select(folder / "run", budget="auto", name="auto")
    gs.select(folder / "run", budget=15, name="picked", keep=None)
    return folder


@pytest.fixture
def tab(world):
    """A tab of a browser in which any request beside the page itself is a mistake."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    heard = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on(
            "request", lambda one: None if one.url.startswith("file:///") else heard.append(one.url)
        )
        yield tab
        asked = tab.evaluate("performance.getEntriesByType('resource').length")
        browser.close()
    assert heard == []
    assert asked == 0


def opened(tab, path, link=""):
    tab.goto(f"{Path(path).as_uri()}{link}")
    tab.wait_for_selector("html[data-drawn]")
    return tab


def on_screen(tab, n):
    tab.locator("#count").filter(has_text=re.compile(f"^{n} of ")).wait_for()


def test_a_page_in_a_browser(world, tab):
    """Charts, filters, search, reading, keyboard, links, lists; nothing runs or asks."""
    report = gs.report(world / "run", name="picked")
    opened(tab, report.path)
    for card in tab.query_selector_all("figure.card"):
        marks = card.query_selector_all(".chart svg path, .chart svg line, .chart svg text")
        assert len(marks) > 3, card.get_attribute("id")
    charts = {card.get_attribute("id") for card in tab.query_selector_all("figure.card")}
    names = ("why", "score", "loss", "length", "map", "groups", "sources", "overlap")
    assert charts >= {f"chart-{name}" for name in names}
    on_screen(tab, N)
    for kind, n in (("Kept", 15), ("Not kept", N - 16), ("Dropped", 1), ("All", N)):
        tab.click(f"[data-kind='{kind}']")
        on_screen(tab, n)
    tab.select_option("select[name=source]", label="book")
    on_screen(tab, sum(i % 4 == 0 for i in range(N)))
    names = tab.eval_on_selector_all(
        "#chart-sources svg text", "all => all.map(one => one.textContent)"
    )
    assert "0 of 1" in names or "1 of 1" in names, names
    assert "__proto__" in [name.strip() for name in names], names
    tab.click("button[type=reset]")
    on_screen(tab, N)
    # What a row says is text, whatever it says.
    tab.fill("input[type=search]", "window.ran")
    on_screen(tab, 1)
    assert tab.inner_text(".tabulator-row .clip") == HOSTILE
    tab.locator(".tabulator-row").first.focus()
    tab.keyboard.press("Enter")
    assert tab.inner_text("#reader-id").endswith(HOSTILE)
    with tab.expect_download() as saved:
        tab.evaluate("document.querySelector('#save-drop').click()")
    link = re.search(r"#row=.*", tab.url)[0]
    tab.keyboard.press("Escape")
    assert not tab.evaluate("document.querySelector('#reader').open")
    tab.reload()
    assert tab.evaluate("window.ran") is None
    tab.goto("about:blank")
    opened(tab, report.path, link)
    assert tab.evaluate("document.querySelector('#reader').open")
    assert "similarity" in tab.inner_text("#reader-near h3")
    shown = tab.inner_text("#reader-row h3")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#reader-id").endswith("{odd")
    assert shown
    # On a telephone nothing is wider than the screen.
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.emulate_media(color_scheme="dark")
    opened(tab, report.path)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert saved.value.suggested_filename == "drop.txt"


def test_saved_ids_go_back_in(world, tab, tmp_path):
    """Lists that the page saves are what `--keep` and `--drop` read, odd ids among them."""
    opened(tab, gs.report(world / "run", name="picked").path)
    tab.fill("input[type=search]", "{odd")
    on_screen(tab, 1)
    tab.click("button[type=reset]")
    on_screen(tab, N)
    with tab.expect_download() as saved:
        tab.click("#save-keep")
    assert (
        tab.inner_text("#count")
        == f"{N - 1} ids saved; 1 left out, as these rows cannot be selected"
    )
    saved.value.save_as(tmp_path / "keep.txt")
    run = shutil.copytree(world / "run", tmp_path / "run")
    assert len(gs.select(run, budget=N - 1, keep=tmp_path / "keep.txt", name="k")) == N - 1


def test_select_writes_the_page_and_report_writes_it_again(world, tmp_path, capsys):
    run = shutil.copytree(world / "run", tmp_path / "run")
    picked = run / "selections" / "picked" / "report.html"
    assert picked.exists()
    code, out, _ = invoke(capsys, "report", run, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["report"] == str(picked)
    assert said["rows"] == N
    assert said["size_bytes"] == picked.stat().st_size < 2.5e6
    # The newest selection is meant; one that is given is meant before it.
    gs.select(run, budget=5, name="newer", report=False)
    assert not (run / "selections" / "newer" / "report.html").exists()
    assert gs.report(run).selection == "newer"
    assert gs.report(gs.select(run, budget=15, name="picked")).path == picked
    for _ in range(2):  # A page may be written again.
        assert gs.report(run, name="picked", out=tmp_path / "x.html").path == tmp_path / "x.html"


@pytest.mark.parametrize("name", ["data.jsonl", "run/pool.parquet", "other.html"])
def test_what_is_no_page_is_not_written_over(world, tmp_path, name):
    copy = Path(shutil.copytree(world, tmp_path / "copy"))
    (copy / "other.html").write_text("<!doctype html><p>mine")
    before = (copy / name).read_bytes()
    with pytest.raises(GradsiftError, match="is there already, and is no page of gradsift"):
        gs.report(copy / "run", name="picked", out=copy / name)
    assert (copy / name).read_bytes() == before


def test_a_changed_config_is_named_not_the_selection(world, tmp_path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("truncation", "truncatian"))
    with pytest.raises(GradsiftError, match=r"config\.yaml: damaged or changed") as caught:
        gs.report(run)
    assert "Remove that folder and select again" not in str(caught.value)


def test_a_notebook_shows_the_same(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    picked = gs.select(run, budget=15, name="picked")
    shown = picked._repr_html_()
    assert "15 of 60 rows kept" in shown
    assert str(picked.report) in shown
    assert "<svg" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert len(picked.plot().vconcat) > 8
    assert "Kept rows score" in json.dumps(picked.plot("score").to_dict())
    with pytest.raises(GradsiftError, match=r"no chart \['x'\]; there are: .*'groups'"):
        picked.plot("x")


@pytest.mark.parametrize(
    ("harm", "options", "says"),
    [
        (None, {"name": "other"}, "no selection 'other'; there are: auto, picked"),
        (None, {"out": "."}, "`out` .: is a folder"),
        ("decisions.parquet", {"name": "picked"}, "decisions.parquet: damaged or changed"),
        ("selection.json", {"name": "picked"}, "selection.json: damaged or changed"),
        (None, {"data": "/nope"}, "/nope: there is no such file"),
        ({"audit": 3}, {"name": "picked"}, "do not hold what a selection says"),
        ({"settings": {"strategy": "x"}}, {"name": "picked"}, "do not hold what a selection says"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(world, tmp_path, harm, options, says):
    run = shutil.copytree(world / "run", tmp_path / "run")
    folder = run / "selections" / "picked"
    if isinstance(harm, str):
        (folder / harm).write_bytes(b"{}]")
    elif harm:  # By somebody who knows how to seal it.
        write_json(folder / "selection.json", read_json(folder / "selection.json") | harm)
    with pytest.raises(GradsiftError, match=re.escape(says)):
        gs.report(run, **options)


def test_a_large_page_holds_texts_of_a_sample_and_says_so(world, tmp_path, monkeypatch):
    for name, value in (("MOST_WHOLE", 40), ("MOST_TEXTS", 25), ("MOST_LISTED", 50)):
        monkeypatch.setattr(page, name, value)
    monkeypatch.setattr(page, "MOST_CHARACTERS", 400)
    text = gs.report(world / "run", name="picked", out=tmp_path / "r.html").path.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["columns"]
    assert len(data["id"]) == 50
    assert sum(one is not None for one in data["reason"]) == 25
    assert "lists 50 of 60 rows" in text
    assert "reasons of 25" in text
    assert "Texts are cut" in text
    texts = [one for name in ("prompt", "answer") for one in data[name] if one is not None]
    assert sum(len(one.removesuffix("…")) for one in texts) <= 400
    # Numbers of every listed row are those of the decisions.
    rows = {row["instance_id"]: row for row in pq.read_table(
        world / "run" / "selections" / "picked" / "decisions.parquet").to_pylist()}  # fmt: skip
    for one, rank, score in zip(data["id"], data["rank"], data["score"], strict=True):
        assert rank == rows[one]["rank"]
        assert score == pytest.approx(rows[one]["gradient_score"] or score, abs=6e-4)
