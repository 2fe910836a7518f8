"""Models are trained and evaluated once, whoever does it and however often it is interrupted."""

import importlib.util
import json
import subprocess
import sys

import pytest

from comparing import ARMS, QUICK, Killed, compared, logged
from gradsift import compare


def change(path, edit):
    """Change a JSON file of a run folder as an earlier gradsift wrote it, without a seal."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    changed = edit(content)
    path.write_text(json.dumps(content if changed is None else changed))


def test_answers_are_kept(world, finished):
    files = list((world / "run" / "arms").glob("grads_50pct-0-*/answers.jsonl"))
    # Other tests may have had other rows answered in the same run.
    answers = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    (lines,) = (lines for lines in answers if len(lines) > 1)
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert [line["reference"] for line in lines] == [row["response"] for row in rows]


def test_again_nothing_is_trained(world, finished, log):
    _, found = finished
    again = compared(world, name="first")
    assert any("7 models, 7 of them done" in line for line in log)
    assert not any("training 0" in line for line in log)
    assert again.summary()["arms"] == found["arms"]


@pytest.mark.parametrize("moments", [(1, 4, 8, 13, 2), (3, 6, 10, 15, 4), (31, 2, 2, 2, 2)])
def test_killed_anywhere_and_resumed_the_comparison_is_the_same(
    world, finished, fresh_run, moments
):
    _, expected = finished
    # After so many calls: in trainings, in evaluations, between arms.
    moments = iter(moments)
    countdown = {"left": next(moments)}

    def tick(*_):
        countdown["left"] -= 1
        if countdown["left"] == 0:
            raise Killed

    options = {
        "test": str(world / "test.jsonl"),
        "arms": ARMS,
        "general": (str(world / "text.txt"),),
        "save_steps": 1,
        **QUICK,
    }
    n_killed = 0
    while True:
        try:
            with logged(tick):
                result = compare(fresh_run, **options, progress=tick)
            break
        except Killed:
            n_killed += 1
            countdown["left"] = next(moments, -1)
    assert n_killed == 5
    found = json.loads(json.dumps(result.summary()))
    for part in ("arms", "verdicts", "n_items"):
        assert found[part] == expected[part]


def test_checkpoints_that_a_kill_left_behind_a_result_are_removed(world, fresh_run):
    options = {"test": str(world / "test.jsonl"), "arms": "full", "general": (), "epochs": 1}
    compare(fresh_run, **options)
    (folder,) = (fresh_run / "arms").glob("full-0-*")
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    compare(fresh_run, **options)
    assert not (folder / "checkpoints").exists()


def test_what_another_process_does_is_waited_for(world, fresh_run, tmp_path, log):
    only = {"arms": ("base",), "general": (), "epochs": 1, "max_new_tokens": 4}
    compare(fresh_run, test=str(world / "test.jsonl"), **only)
    (folder,) = (fresh_run / "arms").glob("base-0-*")
    (lock,) = (fresh_run / "arms" / "locks").iterdir()
    (folder / "scores.json").rename(tmp_path / "scores.json")
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(lock), str(tmp_path), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "has it\n"
    log.clear()
    compare(fresh_run, test=str(world / "test.jsonl"), **only)
    assert other.wait() == 0
    assert any("with another process" in line for line in log)
    assert not any(line.startswith("1/1") for line in log)


# Holds the lock of an arm, and then ends its work.
OTHER = """
import sys, time
from pathlib import Path
from filelock import FileLock

lock, done, folder = sys.argv[1:]
with FileLock(lock):
    print("has it", flush=True)
    time.sleep(8)
    (Path(done) / "scores.json").rename(Path(folder) / "scores.json")
"""


def test_equal_subsets_are_trained_once(world, finished, log):
    compared(world, name="twice", arms=("base", "grads@50%", "grads@12:seeds=1"))
    assert any("3 models, 3 of them done" in line for line in log)


def test_other_questions_are_another_evaluation(world, finished):
    result = compared(world, name="short", arms=("base",), max_new_tokens=2)
    assert result.made_with["evaluation"]["max_new_tokens"] == 2
    assert len(list((world / "run" / "arms").glob("base-0-*"))) >= 2


def test_scores_that_an_earlier_gradsift_saved_are_taken(world, fresh_run, log):
    """The sanity benchmark was called probe: in scores, and in identities to this day."""
    options = {"arms": ("base",), "general": ("sanity",), "limit": 3, "max_new_tokens": 4}
    options["test"] = str(world / "test.jsonl")
    first = compare(fresh_run, **options)
    (path,) = (fresh_run / "arms").glob("base-0-*/scores.json")
    assert json.loads(path.read_text())["identity"]["exam"]["tasks"] == ["probe"]

    def rename(result):
        result["scores"]["tasks"]["probe"] = result["scores"]["tasks"].pop("sanity")

    change(path, rename)
    log.clear()
    again = compare(fresh_run, **options)
    assert any("1 models, 1 of them done" in line for line in log)
    assert again.summary()["arms"] == first.summary()["arms"]
    assert again.board.sizes == {"rows": 9, "answers": 9, "task:sanity": 3}


def loses(*keys):
    def edit(result):
        for key in keys[:-1]:
            result = result[key]
        del result[keys[-1]]

    return lambda path: change(path, edit)


DAMAGES = {
    "cut": lambda path: path.write_text(path.read_text()[:100]),
    "no text": lambda path: path.write_bytes(b"\xff" * 100),
    "a list": lambda path: change(path, lambda result: [result]),
    "a number": lambda path: change(path, lambda result: 1),
    "no scores": loses("scores"),
    "no identity": loses("identity"),
    "no loss": loses("scores", "rows", "loss"),
    "a loss too few": loses("scores", "rows", "loss", 0),
    "an answer too few": loses("scores", "answers", "chrf", 0),
    "a count too few": loses("scores", "answers", "bleu", 1, 0),
    "no answers": loses("scores", "answers"),
    "another identity": loses("identity", "dtype"),
    "a text": lambda path: change(path, lambda r: r["scores"]["rows"]["loss"].insert(0, "a")),
    "nothing": lambda path: change(path, lambda r: r["scores"].update(rows=None)),
    "no number of rows seen": lambda path: change(
        path,
        lambda r: r.update(
            training={"n_steps": 1, "n_tokens": 1, "seconds": 1, "n_instances": "all"}
        ),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_scores_that_were_damaged_are_made_again(world, fresh_run, log, name):
    options = {"arms": ("base",), "general": (), "max_new_tokens": 4}
    options["test"] = str(world / "test.jsonl")
    first = compare(fresh_run, **options)
    (path,) = (fresh_run / "arms").glob("base-0-*/scores.json")
    DAMAGES[name](path)
    again = compare(fresh_run, **options)
    assert sum(f"{path} is damaged" in line for line in log) == 1
    assert again.summary()["arms"] == first.summary()["arms"]


@pytest.mark.skipif(not importlib.util.find_spec("gradsift.seals"), reason="JSON has no seal yet")
def test_a_score_that_was_changed_by_hand_is_noticed(world, fresh_run, log):
    options = {"arms": ("base",), "general": (), "max_new_tokens": 4}
    options["test"] = str(world / "test.jsonl")
    first = compare(fresh_run, **options)
    (path,) = (fresh_run / "arms").glob("base-0-*/scores.json")
    result = json.loads(path.read_text())
    result["scores"]["rows"]["loss"][0] += 1
    path.write_text(json.dumps(result))
    again = compare(fresh_run, **options)
    assert sum(f"{path} is damaged" in line for line in log) == 1
    assert again.summary()["arms"] == first.summary()["arms"]


@pytest.fixture
def chinese(world, fresh_run, tmp_path):
    """A comparison of base on Chinese rows, as a gradsift saved it that knew only spaces."""
    rows = [
        {"id": "a", "prompt": "天气?", "response": "今天天气很好,适合出门散步。\u2028好。"},
        {"id": "b", "prompt": "一年?", "response": "一年通常有三百六十五天。"},
    ]
    test = tmp_path / "chinese.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"arms": ("base",), "general": (), "max_new_tokens": 4, "test": str(test)}
    now = compare(fresh_run, **options)
    (path,) = (fresh_run / "arms").glob("base-0-*/scores.json")
    whole = path.read_text()

    def score_as_before(result):
        answers = result["scores"]["answers"]
        assert answers["meteor"] == [None, None]
        del answers["language"]
        answers["bleu"], answers["meteor"] = [[1, 1, *[0] * 8]] * 2, [0.0, 0.0]
        answers["signatures"]["bleu"] = answers["signatures"]["bleu"].replace("tok:zh", "tok:13a")
        answers["signatures"]["meteor"] = "nltk"

    change(path, score_as_before)
    return fresh_run, options, path, whole, now


def test_answers_that_were_scored_otherwise_are_scored_again_without_the_model(
    chinese, log, monkeypatch
):
    run, options, path, whole, now = chinese
    monkeypatch.setattr("gradsift.comparison.experiment.load_model", lambda *_: pytest.fail("made"))
    before = path.read_text()
    log.clear()
    assert compare(run, dry_run=True, **options).n_done == 1
    assert path.read_text() == before
    again = compare(run, **options)
    assert any("its answers are scored again" in line for line in log)
    assert path.read_text() == whole
    assert "tok:zh" in again.text()
    assert again.summary()["signatures"] == now.summary()["signatures"]
    assert again.summary()["arms"] == now.summary()["arms"]
    log.clear()
    compare(run, **options)
    assert not any("again" in line for line in log)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_text(path.read_text().split("\n")[0]),
        lambda path: path.write_text('[1]\n{"reference": 1}\n'),
        lambda path: path.write_text(""),
    ],
    ids=["removed", "cut", "a line", "not ours", "empty"],
)
def test_without_its_answers_a_model_is_made_again(chinese, log, damage, sealed):
    run, options, path, _, now = chinese
    answers = path.with_name("answers.jsonl")
    if not sealed:  # As an earlier gradsift saved it.
        loses("answers_sha256")(path)
    damage(answers)
    warning = "answers.jsonl is damaged" if sealed and answers.exists() else "is made again"
    log.clear()
    again = compare(run, **options)
    assert sum(warning in line for line in log) == 1
    assert again.summary()["arms"] == now.summary()["arms"]
