"""Replay in train, compare and the exports: from the command line to the weights."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import gradsift as gs
from comparing import QUICK, TRAINING, compared
from gradsift.evaluation.losses import response_losses
from gradsift.run_folder import Run
from gradsift.training.model import find_model, load_model
from test_cli import invoke
from tiny import save_tiny

REPLAY = {"replay_ratio": 0.2, "epochs": 1}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    folder = tmp_path_factory.mktemp("general")
    chats = [
        [
            {"role": "user", "content": f"Q{i}?"},
            {"role": "assistant", "content": "ok " * (1 + i % 4)},
        ]
        for i in range(60)
    ]
    return {
        "text": write(folder / "text.jsonl", [{"text": f"General {i} of all"} for i in range(60)]),
        "chat": write(folder / "chat.jsonl", [{"messages": chat} for chat in chats]),
    }


@pytest.fixture(scope="module")
def replayed(world, general, tmp_path_factory):
    run = tmp_path_factory.mktemp("replayed") / "run"
    ignored = shutil.ignore_patterns("arms", "first*", "selections")
    shutil.copytree(world / "run", run, ignore=ignored)
    arms = ("base", "full:seeds=1", "full:replay=0:seeds=1", "full-equal-steps:seeds=1", "random",
            "grads", "grads:replay=0")  # fmt: skip
    found = gs.compare(
        run, test=str(world / "test.jsonl"), arms=arms, general=(str(world / "text.txt"),),
        replay=general["text"], **{**QUICK, **REPLAY},
    )  # fmt: skip
    return found, json.loads((run / "comparison.json").read_text())


def test_the_tables_say_steps_tokens_and_the_share(replayed):
    result, found = replayed
    arms = found["arms"]
    assert list(arms) == [
        "base",
        "full + replay 20%",
        "full",
        "full-equal-steps 50% + replay 20%",
        "random 50% + replay 20%",
        "grads 50% + replay 20%",
        "grads 50%",
    ]
    for label, arm in arms.items():
        assert (arm["replay"] is not None) is ("replay" in label)
        if arm["replay"] is None:
            continue
        assert arm["replay"]["share"] == pytest.approx(0.2, abs=0.04)
        own = 12 if label.startswith(("random", "grads")) else 24
        assert arm["n_rows"] == own + arm["replay"]["n_rows"]
    steps = {label: arm["n_steps"] for label, arm in arms.items()}
    # Of 4 rows each: those of replay are among them, also for the steps of full-equal-steps.
    assert steps["full"] == 6
    assert steps["full + replay 20%"] == -(-arms["full + replay 20%"]["n_rows"] // 4) > 6
    assert steps["grads 50%"] == 3
    assert steps["full-equal-steps 50% + replay 20%"] == steps["random 50% + replay 20%"] > 3
    cost = found["cost"]
    assert cost["full + replay 20%"]["training_tokens"] == (
        cost["full"]["training_tokens"] + arms["full + replay 20%"]["replay"]["n_tokens"]
    )
    head, *rows = result.main_table()
    assert head[:6] == ["arm", "seeds", "rows", "steps", "tokens", "replay"]
    shares = {row[0]: row[5] for row in rows}
    assert shares["full"] == shares["base"] == ""
    assert (
        shares["full + replay 20%"] == f"{100 * arms['full + replay 20%']['replay']['share']:.1f}%"
    )
    assert "replay: share of general rows" in result.text()
    assert found["made_with"]["replay"]["replay_ratio"] == REPLAY["replay_ratio"]
    assert "sha256" in found["made_with"]["replay"]


def test_an_arm_is_compared_with_rivals_that_have_as_much_replay_and_with_itself(replayed):
    _, found = replayed
    asked = {(v["arm"], v["rival"]) for v in found["verdicts"]}
    more = " + replay 20%"
    assert asked == {
        *((f"grads 50%{more}", f"{rival}{more}") for rival in ("full", "random 50%",
                                                               "full-equal-steps 50%")),
        ("grads 50%", "full"),
        (f"grads 50%{more}", "grads 50%"),
        (f"full{more}", "full"),
    }  # fmt: skip
    assert any(
        "grads 50%: no random arm with as much replay is as large" in n for n in found["notes"]
    )


def test_other_trainings_have_other_rows_of_replay_and_other_weights_another_name(replayed):
    result, _ = replayed
    folders = sorted((result.run / "arms").glob("grads_50pct*"))
    names = [folder.name.rpartition("-")[0] for folder in folders]
    assert names == ["grads_50pct-0", "grads_50pct-1", "grads_50pct_replay_20pct-0",
                     "grads_50pct_replay_20pct-1"]  # fmt: skip
    read = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    rows = [one["identity"]["training"]["rows"] for one in read]
    assert rows[0] == rows[1]
    assert len(set(rows)) == 3


def test_without_replay_it_is_the_training_that_it_was_before(world, finished, replayed):
    """The same folder, by name: what was done before replay came is found again."""

    def names(run, pattern):
        return {path.name for path in (run / "arms").glob(pattern)}

    before, _ = finished
    after, _ = replayed
    for pattern in ("base-*", "full-0-*", "grads_50pct-*"):
        # Other tests may have trained more there.
        assert set() < names(after.run, pattern) <= names(before.run, pattern)
    assert "replay" not in before.text()


def test_train_finds_what_compare_trained_and_the_other_way_round(world, general, tmp_path, log):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("arms"))
    trained = gs.train(run, arm="full", replay=general["chat"], **REPLAY)
    assert trained.n_rows == 24 + trained.replay["n_rows"]
    assert "replay: " in trained.text()
    del log[:]
    options = {"test": str(world / "test.jsonl"), "general": (), **QUICK, **REPLAY}
    gs.compare(run, arms=("full:seeds=1",), replay=general["chat"], **options)
    assert any("trained before" in line for line in log)
    again = gs.train(run, arm="full:replay=0.2", replay=general["chat"], epochs=1)
    assert again.folder == trained.folder
    saved = json.loads((trained.folder / "gradsift.json").read_text())["rows"]
    assert sum(name.startswith("replay/") for name in saved) == trained.replay["n_rows"]
    assert gs.train(run, arm="full", epochs=1).folder != trained.folder


def test_a_dry_run_lets_no_model_write(world, tmp_path, monkeypatch):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("arms"))
    options = {"test": str(world / "test.jsonl"), "general": (), "arms": ("full", "grads"), **QUICK}
    monkeypatch.setattr("gradsift.replay.self_written.load_model", None)
    without = gs.compare(run, dry_run=True, **options)
    found = gs.compare(run, replay="self", replay_ratio=0.5, dry_run=True, **options)
    assert found.n_tokens > without.n_tokens
    assert not (run / "self-written").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arm", "full", "--replay-ratio", "0.1"), "--replay-ratio is given, but no rows"),
        (("--arm", "full:replay=0.1"), "no rows for it are given: add --replay"),
        (("--arm", "full:replay=0", "--replay", "{text}"), "no arm that is trained takes any"),
        (("--arm", "full", "--replay", "{data}"), "is what is taught itself"),
        (("--arm", "full", "--replay", "{text}", "--replay-ratio", "0.95"), "are not repeated"),
        (("--arm", "full", "--replay", "{text}", "--set", "replay_choice=least_conflict"),
         "--replay is then a run folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(capsys, world, general, arguments, message):
    places = {"text": general["text"], "data": world / "data.jsonl"}
    arguments = [word.format(**places) for word in arguments]
    code, _, err = invoke(capsys, "train", world / "run", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_exports_get_the_rows_and_the_selection_does_not(capsys, world, general):
    code, out, err = invoke(
        capsys, "select", world / "run", "--budget", "50%", "--name", "replayed", "--replay",
        general["chat"], "--replay-ratio", 0.2, "--export", "trl,openai,axolotl,llamafactory",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    folder = Path(json.loads(out)["selection"])
    export = folder / "export"
    about = json.loads((export / "replay.json").read_text())
    n = len(about["ids"])
    assert about["share"] == pytest.approx(0.2, abs=0.04)
    assert len(lines(folder / "selected.jsonl")) == 12
    assert len(lines(export / "openai.jsonl")) == len(lines(export / "trl.jsonl")) == 12 + n
    answers = [row["messages"][-1]["content"] for row in lines(export / "openai.jsonl")]
    assert all(answer.startswith("ok") for answer in answers[12:])
    assert not any(answer.startswith("ok") for answer in answers[:12])
    assert len(lines(export / "llamafactory/data.jsonl")) == 12 + n
    assert len(lines(export / "axolotl.jsonl")) == 12
    assert len(lines(export / "axolotl-replay.jsonl")) == n
    datasets = yaml.safe_load((export / "axolotl.yaml").read_text())["datasets"]
    assert [Path(one["path"]).name for one in datasets] == ["axolotl.jsonl", "axolotl-replay.jsonl"]
    notes = json.loads(out)["export_notes"]
    assert any(f"{n} rows of replay" in note for note in notes)
    digests = json.loads((folder / "selection.json").read_text())["files"]
    assert {"export/replay.json", "export/axolotl-replay.jsonl"} <= digests.keys()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"replay_ratio": 0.95}, "are not repeated"),
        # Refused only when it is written.
        ({"export": ("trl", "openai"), "replay": "{text}"}, "can say none of the rows of replay"),
    ],
)
def test_an_export_that_is_refused_leaves_the_one_that_was_there(
    world, general, tmp_path, refused, message
):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("arms"))
    options = {"budget": "50%", "export": ("trl",), "replay": general["chat"], "replay_ratio": 0.2}
    folder = gs.select(run, **options).folder

    def files():
        # Not the lock of the selection, nor what is put aside.
        return {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "selection.json"
        }

    before = files()
    refused = {k: v.format(**general) if isinstance(v, str) else v for k, v in refused.items()}
    with pytest.raises(gs.GradsiftError, match=f"{message}.*with the export that it had"):
        gs.select(run, **{**options, **refused})
    assert files() == before
    digests = json.loads((folder / "selection.json").read_text())["files"]
    assert "export/trl.jsonl" in digests
    gs.select(run, **options)
    assert files() == before
    gs.select(run, budget="50%")
    assert not (folder / "export").exists()


def test_texts_beside_conversations_go_where_a_form_has_a_place_for_them(world, general):
    options = {"budget": "50%", "replay": general["text"], "replay_ratio": 0.2}
    result = gs.select(world / "run", export=("axolotl", "trl"), name="texts", **options)
    export = result.folder / "export"
    kinds = [
        one["type"] for one in yaml.safe_load((export / "axolotl.yaml").read_text())["datasets"]
    ]
    assert kinds == ["chat_template", "completion"]
    assert {"input_ids", "labels"} == lines(export / "trl.jsonl")[0].keys()
    (why,) = (note for note in result.notes if "tokens of this model's tokenizer" in note)
    assert "texts stand beside conversations" in why
    for trainer in ("llamafactory", "openai"):
        with pytest.raises(gs.GradsiftError, match="can say none of the rows of replay"):
            gs.select(world / "run", export=trainer, name=f"no-{trainer}", **options)


def test_conversations_beside_pairs_are_no_rows_of_the_same_file(general, tmp_path):
    model = save_tiny(tmp_path / "model", chat_template=None)
    rows = [{"prompt": f"{i}?", "completion": "a b c " * (i + 1)} for i in range(12)]
    write(tmp_path / "rows.jsonl", rows)
    gs.capture(model, gs.load_pool(tmp_path / "rows.jsonl", format="prompt_completion"),
               out=tmp_path / "run", warmup_fraction=0)  # fmt: skip
    with pytest.raises(gs.GradsiftError, match="a conversation among plain text"):
        gs.select(tmp_path / "run", budget="50%", export="llamafactory", replay=general["chat"])


def test_replay_without_an_export_is_refused(world, general):
    with pytest.raises(gs.GradsiftError, match="add `export`, or leave it out"):
        gs.select(world / "run", budget="50%", replay=general["text"])


def test_the_model_writes_rows_for_an_export_once(world, tmp_path, monkeypatch):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("arms"))
    options = {"budget": "50%", "export": "openai", "replay": "self", "replay_ratio": 0.2}
    first = gs.select(run, name="one", **options)
    monkeypatch.setattr("gradsift.replay.self_written.load_model", None)
    second = gs.select(run, name="two", **options)
    one, two = (result.folder / "export/openai.jsonl" for result in (first, second))
    assert one.read_text() == two.read_text()
    assert len(lines(one)) > 12


def task(letter, answer):
    return [{"prompt": f"{letter}{i}?", "response": answer} for i in range(32)]


def test_a_replayed_arm_forgets_less_of_what_was_taught_before(tmp_path):
    """A tiny model is taught one task, then another, with and without some of the first."""
    first = write(tmp_path / "first.jsonl", task("a", "red green blue"))
    second = write(tmp_path / "second.jsonl", task("b", "stone river dog"))
    sft = TRAINING | {"learning_rate": 5e-3}
    pool = gs.load_pool(first)
    gs.capture(save_tiny(tmp_path / "model"), pool, out=tmp_path / "one", sft=sft,
               warmup_fraction=0)  # fmt: skip
    taught = gs.train(tmp_path / "one", arm="full", epochs=6, out=tmp_path / "taught")
    run = tmp_path / "two"
    gs.capture(str(taught.folder), gs.load_pool(second), out=run, sft=sft, warmup_fraction=0)
    models = {
        "before": taught.folder,
        "plain": gs.train(run, arm="full", epochs=6).folder,
        "replayed": gs.train(run, arm="full", epochs=6, replay=first, replay_ratio=0.1).folder,
    }
    loss = {}
    for name, folder in models.items():
        model = load_model(find_model(str(folder)))
        for what, rows in (("first", first), ("second", second)):
            of_rows = Run(run).tokenized(gs.load_pool(rows)).items
            losses = response_losses(model, of_rows)
            loss[name, what] = sum(losses) / len(losses)
    forgot = {name: loss[name, "first"] - loss["before", "first"] for name in ("plain", "replayed")}
    assert forgot["plain"] > 1
    assert forgot["replayed"] < 0.3 * forgot["plain"]
    # And it learnt the other task.
    assert loss["replayed", "second"] < 1 < 2 < loss["before", "second"]


def test_other_arms_of_a_world_are_as_they_were(world):
    found = compared(world, name="plain", arms=("base", "full:seeds=1"))
    assert found.main_table()[0][:5] == ["arm", "seeds", "rows", "steps", "held-out loss ↓"]
