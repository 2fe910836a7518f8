"""What a page is made of: data that cannot run, samples, words, reasons, counts, pinned assets."""

import hashlib
import json
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.reporting.charts import histogram, standalone
from gradsift.reporting.comparison_charts import arms_by_metric
from gradsift.reporting.content_map import plane_of
from gradsift.reporting.page import inert_json
from gradsift.reporting.sampling import shown_length, stratified
from gradsift.reporting.why import kind_of
from gradsift.reporting.words import telling_words


@given(st.text(st.characters(exclude_categories=[])))
def test_json_in_a_page_is_inert_and_says_the_same(text):
    written = inert_json({text: [f"</script><!--{text}\u2028&"]})
    assert not set("<>&\u2028\u2029") & set(written)
    written.encode("utf-8")
    assert json.loads(written) == {text: [f"</script><!--{text}\u2028&"]}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90))
def test_a_sample_has_something_of_every_stratum(strata, n):
    stratum_N = np.array(strata)
    drawn = stratified(stratum_N, n)
    assert len(drawn) == min(n, len(strata))
    assert (np.diff(drawn) > 0).all()
    counts = np.bincount(stratum_N)
    for stratum in np.flatnonzero(counts * n >= 2 * len(strata)):
        assert stratum in stratum_N[drawn]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 300))
def test_texts_are_cut_as_little_as_fits(lengths, most):
    shown = shown_length(np.array(lengths), most)
    total = sum(min(length, shown) for length in lengths)
    assert total <= most
    assert total == sum(lengths) or sum(min(length, shown + 1) for length in lengths) > most


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("not kept: too close to kept row a (b), c (similarity 0.81); gain 1", "too close to a "
         "kept row"),
        ("not kept: gradient not small enough for its length (magnitude percentile 84, last kept "
         "row 11); gain 0.04 < cut 0.05", "gradient not small enough for its length"),
        ("kept (rank 3 of 60): loss 2.1, low first", "loss, low first"),
        ("not kept: loss 2.1, last kept row 1.98", "loss behind that of the last kept row"),
        ("not kept: its 87 tokens do not fit the 20 that are left", "its … tokens do not fit the "
         "… that are left"),
        ("dropped: no_response_token: after truncation", "dropped: no response token"),
        ("drawn at random (seed 0)", "drawn at random"),
    ],
)  # fmt: skip
def test_reasons_are_taken_together(reason, kind):
    assert kind_of(reason) == kind


def test_groups_are_named_by_words_that_others_have_not():
    texts = ["the loan of the bank", "the bank and a loan", "the loan again"]
    texts += ["the fever of the child", "the child and a fever", "the 热 fever", "発熱発熱 fever"]
    words = telling_words(texts, np.array([0, 0, 0, 1, 1, 1, 1]))
    assert set(words[0]) == {"loan", "bank"}
    assert "fever" in words[1]
    assert "the" not in words[0] + words[1]


@pytest.mark.parametrize("digits", [0, 2])
def test_a_histogram_counts_each_row_once(digits):
    value_N = np.r_[np.arange(100.0), 1e6, np.nan]
    kept_N = np.arange(102) % 3 == 0
    bins = histogram(value_N, kept_N, "x", digits, clipped=True)["data"]["values"]
    assert sum(one["pool"] for one in bins) == 101
    assert sum(one["kept"] for one in bins) == kept_N[:101].sum()
    # One enormous value does not squeeze the rest into one bin.
    assert bins[-1]["to"] < 200
    assert "or more" in bins[-1]["range"]
    assert len(histogram(np.full(3, 2.0), kept_N[:3], "x", digits)["data"]["values"]) >= 1


def test_the_plane_keeps_what_differs_most():
    generator = np.random.default_rng(0)
    group_R = np.repeat([0, 1], 20)
    features_RD = 0.1 * generator.normal(size=(40, 8)) + 5.0 * group_R[:, None]
    xy_R2, share = plane_of(features_RD.astype(np.float32), np.zeros(40))
    sides = xy_R2[group_R == 0, 0], xy_R2[group_R == 1, 0]
    assert max(map(max, sides[:1])) < min(sides[1]) or min(sides[0]) > max(sides[1])
    assert 0.5 < share <= 1


def test_no_interval_leads_to_where_no_value_can_be():
    """An accuracy is not above 100, nor a BLEU below 0."""
    level = {"value": 60.0, "low": -5.0, "high": 112.0}
    panels = arms_by_metric({"base": {"levels": {"bleu": level, "loss": level}}})
    ends = [(one["x_low"], one["x_high"]) for panel in panels for one in panel["data"]["values"]]
    assert ends == [(0.0, 112.0), (0.0, 100.0)]
    assert "expr" not in json.dumps(standalone(panels[0]))


def test_what_is_not_ours_is_what_was_pinned():
    assets = files("gradsift.reporting").joinpath("assets")
    lines = assets.joinpath("SHA256SUMS").read_text().splitlines()
    assert len(lines) == 5
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256(assets.joinpath(name).read_bytes()).hexdigest() == digest, name
        assert name in assets.joinpath("README.md").read_text()
        assert name in assets.joinpath("LICENCES.txt").read_text()
