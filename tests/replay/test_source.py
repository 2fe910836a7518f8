"""Which rows of replay stand beside an arm's own, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest

import gradsift as gs
from comparing import write_rows
from gradsift.config import ReplayConfig
from gradsift.errors import GradsiftError
from gradsift.replay.rows import mixed
from gradsift.replay.shares import percent
from gradsift.replay.source import Replay
from gradsift.run_folder import Run
from gradsift.schema import validated
from gradsift.signatures import key_file
from gradsift.terms import IGNORED_LABEL

OWN = {"own_ids": [], "title": "full"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    folder = tmp_path_factory.mktemp("general")
    texts = [{"id": f"t{i}", "text": f"General text {i} " + "abc " * (i % 7)} for i in range(80)]
    chats = [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": "ok " * (1 + i % 6)},
            ],
        }
        for i in range(80)
    ]
    return {
        "text": write(folder / "text.jsonl", texts),
        "chat": write(folder / "chat.jsonl", chats),
    }


def replay_of(run, name, **settings):
    return Replay(run, validated(ReplayConfig, {"replay": name, **settings}))


def ids_of(replayed):
    return [row.instance.instance_id for row in replayed.rows]


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.3])
def test_the_mixture_has_the_share_that_was_asked_for(world, general, kind, ratio):
    run = Run(world / "run")
    own = run.instances
    n_own = sum(item.n_response_tokens for item in own)
    replayed = replay_of(run, general[kind]).beside(n_own=n_own, ratio=ratio, seed=0, **OWN)
    everything = mixed(own, replayed)
    # From the labels that are trained on, whatever Replayed says of itself.
    trained = [sum(label != IGNORED_LABEL for label in item.labels[1:]) for item in everything]
    of_replay = [
        n for n, item in zip(trained, everything, strict=True)
        if item.instance_id.startswith("replay/")
    ]  # fmt: skip
    assert abs(sum(of_replay) - ratio * sum(trained)) <= max(of_replay)
    assert replayed.share == pytest.approx(sum(of_replay) / sum(trained))
    assert [item for item in everything if item in own] == list(own)


def test_all_of_a_text_is_trained_on_and_of_a_conversation_its_answer(world, general):
    run = Run(world / "run")
    for kind in ("text", "chat"):
        (row, *_) = replay_of(run, general[kind]).beside(n_own=500, ratio=0.1, seed=0, **OWN).rows
        masked = row.instance.labels.count(IGNORED_LABEL)
        assert (masked == 0) is (kind == "text")


def test_random_rows_are_those_of_the_seed_and_of_fewer_they_are_the_first(world, general):
    replay = replay_of(Run(world / "run"), general["text"])
    few, many, other = (
        ids_of(replay.beside(n_own=n, ratio=0.2, seed=seed, **OWN))
        for n, seed in ((200, 1), (2000, 1), (2000, 2))
    )
    assert many[: len(few)] == few
    assert many != other
    assert len(set(many)) == len(many)


def test_rows_are_not_repeated(world, general):
    replay = replay_of(Run(world / "run"), general["chat"])
    with pytest.raises(GradsiftError, match=r"Rows are not repeated: .*of at most 0\.\d+") as error:
        replay.beside(n_own=10_000, ratio=0.4, seed=0, **OWN)
    most = float(re.search(r"at most ([\d.]+\d)", str(error.value))[1])
    replayed = replay.beside(n_own=10_000, ratio=most, seed=0, **OWN)
    assert len(replayed.rows) >= 79


def test_long_rows_for_a_small_share_are_told(world, general):
    replayed = replay_of(Run(world / "run"), general["text"]).beside(
        n_own=540, ratio=0.02, seed=0, **OWN
    )
    assert len(replayed.rows) == 1
    assert "asked for were 2 %" in replayed.warning()


@pytest.mark.parametrize("ratio", [0.02, 1e-9])
def test_rows_that_are_too_long_for_a_share_are_refused(world, general, ratio):
    replay = replay_of(Run(world / "run"), general["text"])
    with pytest.raises(GradsiftError, match=r"too long for it \(\d+ tokens and more\)") as error:
        replay.beside(n_own=20, ratio=ratio, seed=0, **OWN)
    assert str(error.value).startswith(f"full: {percent(ratio)} of its tokens")


@pytest.mark.parametrize("ratio", [0.02, 0.05])
def test_shorter_rows_are_taken_where_those_that_were_drawn_are_too_long(world, tmp_path, ratio):
    rows = [{"text": f"{i} " + "long " * 400} for i in range(30)] + [{"text": "a b c"}]
    replay = replay_of(Run(world / "run"), write(tmp_path / "r.jsonl", rows))
    tokens = [row.instance.n_response_tokens for row in replay._rows]
    n_own = round(min(tokens) * (1 - ratio) / ratio)
    for seed in range(5):
        replayed = replay.beside(n_own=n_own, ratio=ratio, seed=seed, **OWN)
        assert replayed.share == pytest.approx(ratio, rel=0.05)


def test_of_rows_that_say_the_same_one_is_kept(world, tmp_path):
    rows = [{"text": "the same row"}] * 20 + [{"text": "another row"}]
    replay = replay_of(Run(world / "run"), write(tmp_path / "r.jsonl", rows))
    assert len(replay._rows) == 2
    assert any("19 rows say word for word what another one says" in n for n in replay.notes)


def test_texts_stand_in_each_other_whatever_their_line_breaks(world, tmp_path):
    text = "The quick brown fox jumps\nover the lazy dog,   and on it goes."
    rows = [
        {"text": "Before. The quick brown fox jumps over the\n\nlazy dog, and on it goes. After."},
        {"text": "quick brown fox jumps over the lazy dog, and on"},
        {"text": "The quick brown fox"},
    ]
    replay = replay_of(Run(world / "run"), write(tmp_path / "r.jsonl", rows))
    (note,) = replay.overlaps(gs.load_pool(world / "test.jsonl"), [("text.txt", text)])
    assert note.startswith("2 rows of replay")


def test_a_split_is_asked_for_under_its_own_name(world, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", [{"text": "a b c"}])
    with pytest.raises(GradsiftError, match="`replay_split`") as error:
        replay_of(Run(world / "run"), str(folder))
    assert "`split`" not in str(error.value)


def test_rows_that_are_taught_too_are_left_out_and_the_pool_itself_is_refused(
    world, general, tmp_path
):
    run = Run(world / "run")
    rows = [json.loads(line) for line in (world / "data.jsonl").read_text().splitlines()]
    more = {"id": "new", "prompt": "new?", "response": "something else"}
    replay = replay_of(run, write(tmp_path / "a.jsonl", [*rows[:9], more]))
    assert ids_of(replay.beside(n_own=10, ratio=0.5, seed=0, **OWN)) == ["replay/new"]
    assert any("9 rows say word for word what a row of the pool says" in n for n in replay.notes)
    with pytest.raises(GradsiftError, match=r"none of its 9 rows can be used .*word for word"):
        replay_of(run, write(tmp_path / "b.jsonl", rows[:9]))
    for same in (world / "data.jsonl", shutil.copy(world / "data.jsonl", tmp_path / "c.jsonl")):
        with pytest.raises(GradsiftError, match="is what is taught itself"):
            replay_of(run, str(same))


def test_what_of_the_evaluation_stands_in_it_is_counted(world, tmp_path):
    run = Run(world / "run")
    test = gs.load_pool(world / "test.jsonl")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    text = "The quick brown fox jumps over the lazy dog. The quick brown fox"
    mine = [*rows[6:8], {**rows[8], "response": "another answer"}]
    mine += [{"prompt": "x", "response": text}, {"prompt": "y", "response": "The quick"}]
    replay = replay_of(run, write(tmp_path / "r.jsonl", mine))
    of_rows, of_text = replay.overlaps(test, [("text.txt", (world / "text.txt").read_text())])
    assert "2 of 9 test rows stand word for word" in of_rows
    assert "the question of 3:" in of_rows
    assert "1 rows of replay" in of_text
    clean = replay_of(run, write(tmp_path / "s.jsonl", mine[-1:]))
    assert clean.overlaps(test, [("text.txt", (world / "text.txt").read_text())]) == []


def test_what_is_dropped_is_counted_as_of_a_pool(world, tmp_path):
    rows = [{"text": "a b c"}, {"text": ""}, {"text": 3}, {"text": "d " * 3000}]
    notes = "\n".join(replay_of(Run(world / "run"), write(tmp_path / "r.jsonl", rows)).notes)
    assert "4 rows, format text" in notes
    assert "1 row dropped, empty_response" in notes
    assert "1 row cut to the maximum length" in notes


@pytest.fixture(scope="module")
def general_run(world, general, tmp_path_factory):
    out = tmp_path_factory.mktemp("general-run")
    gs.capture(str(world / "model"), gs.load_pool(general["text"]), out=out, warmup_fraction=0)
    return out


def test_rows_of_least_conflict_are_those_whose_gradients_point_as_the_arms(world, general_run):
    run, other = Run(world / "run"), Run(general_run)
    replay = replay_of(run, str(general_run), replay_choice="least_conflict")
    own = run.store.instance_ids[:6]
    found = ids_of(replay.beside(own, 100, 0.2, 0, "grads"))
    assert found == ids_of(replay.beside(own, 100, 0.2, 7, "grads"))

    def directions(store, ids):
        at = [store.instance_ids.index(i) for i in ids]
        # Without a preliminary epoch the head alone is captured.
        joint = store.sketches["lm_head"][at].astype(float)
        return joint / np.linalg.norm(joint, axis=1, keepdims=True)

    ids = other.store.instance_ids
    cosines = directions(other.store, ids) @ directions(run.store, own).mean(0)
    best = [f"replay/{ids[i]}" for i in np.argsort(-cosines)]
    assert found == best[: len(found)]
    others = ids_of(replay.beside(run.store.instance_ids[-3:], 300, 0.4, 0, "grads"))
    assert others != best[: len(others)]


def test_a_run_folders_rows_may_be_drawn_at_random_too(world, general, general_run):
    run = Run(world / "run")
    one, two = (
        ids_of(replay_of(run, name).beside(n_own=100, ratio=0.3, seed=0, **OWN))
        for name in (str(general_run), general["text"])
    )
    assert one == two


def test_a_strangers_run_folder_reads_no_file_that_was_not_named(
    world, general_run, tmp_path, monkeypatch
):
    theirs = shutil.copytree(general_run, tmp_path / "theirs")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other-user"))
    assert str(tmp_path) in str(key_file())
    with pytest.raises(GradsiftError, match=r"was captured elsewhere.* name the file of its rows"):
        replay_of(Run(world / "run", data=str(world / "data.jsonl")), str(theirs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay_ratio": 0.1}, "`replay_ratio` is given, but no rows for it: add `replay`"),
        ({"replay_choice": "least_conflict"}, "`replay_choice` is given, but no rows"),
        ({"replay_split": "train"}, "`replay_split` is given, but no rows"),
        ({"replay": "self", "replay_choice": "least_conflict"}, "leave out `replay_choice`"),
        ({"replay": "f", "replay_ratio": 1}, "`replay_ratio` is 1"),
        ({"replay": "f", "replay_ratio": 0}, "`replay_ratio` is 0"),
        ({"replay": "f", "replay_choice": "worst"}, "`replay_choice` is 'worst'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(GradsiftError, match=message):
        validated(ReplayConfig, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay": "nowhere.jsonl"}, r"`replay`: .*nowhere\.jsonl"),
        ({"replay": "{text}", "replay_choice": "least_conflict"}, "`replay` is then a run folder"),
        ({"replay": "{run}", "replay_split": "train"}, "leave out `replay_split`"),
        ({"replay": "{seed}", "replay_choice": "least_conflict"}, "was captured with seed 1"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    world, general, general_run, tmp_path, settings, message
):
    seed = tmp_path / "seed"
    if settings["replay"] == "{seed}":  # ruff: ignore[missing-f-string-syntax]
        write_rows(tmp_path / "few.jsonl", 6 + 2)
        pool = gs.load_pool(tmp_path / "few.jsonl")
        gs.capture(str(world / "model"), pool, out=seed, warmup_fraction=0, seed=1)
    places = {"text": general["text"], "run": general_run, "seed": seed}
    name = settings["replay"].format(**places)
    with pytest.raises(GradsiftError, match=message):
        replay_of(Run(world / "run"), name, **{k: v for k, v in settings.items() if k != "replay"})


def test_the_share_is_a_twentieth_where_nobody_says_it():
    assert ReplayConfig().ratio == 0
    assert ReplayConfig(replay="f").ratio == pytest.approx(1 / 20)
    assert ReplayConfig(replay="f", replay_ratio=0.2).ratio == pytest.approx(1 / 5)
