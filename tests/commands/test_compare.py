"""What a comparison says, and what it refuses."""

import json

import pytest
from datasets import Dataset, DatasetDict

import gradsift as gs
from comparing import TRAINING, compared
from gradsift import compare
from test_cli import invoke


def test_every_arm_is_there_with_rows_steps_and_intervals(finished):
    _, found = finished
    arms = found["arms"]
    assert list(arms) == ["base", "full", "full-equal-steps 50%", "random 50%", "grads 50%"]
    rows = {label: (arm["n_rows"], arm["n_steps"], arm["n_seeds"]) for label, arm in arms.items()}
    assert rows["base"] == (0, None, 1)
    assert rows["full"] == (24, 6, 1)
    # As many steps as 12 rows make, over all 24.
    assert rows["full-equal-steps 50%"] == (24, 3, 1)
    assert rows["random 50%"] == rows["grads 50%"] == (12, 3, 2)
    for arm in arms.values():
        assert set(arm["levels"]) == {"loss", "bleu", "meteor", "rouge_l", "chrf", "text_loss"}
        for level in arm["levels"].values():
            assert level["low"] <= level["value"] <= level["high"]
            assert len(level["by_seed"]) == arm["n_seeds"]
        assert set(arm["by_source"]) == {"book", "forum"}
        assert sum(source["n"] for source in arm["by_source"].values()) == 9
    assert arms["full"]["levels"]["loss"]["value"] < arms["base"]["levels"]["loss"]["value"]


def test_cost_has_the_preliminary_epoch_where_it_is_needed(finished):
    _, found = finished
    cost = found["cost"]
    assert cost["random 50%"]["capture_tokens"] == cost["full"]["capture_tokens"] == 0
    assert cost["grads 50%"]["capture_tokens"] == cost["full"]["training_tokens"]
    assert cost["base"]["training_seconds"] is None
    assert 0 < cost["grads 50%"]["training_tokens"] < cost["full"]["training_tokens"]


def test_every_question_has_an_answer(finished):
    result, found = finished
    asked = [(v["question"], v["rival"]) for v in found["verdicts"]]
    rivals = ("full", "random 50%", "full-equal-steps 50%")
    assert asked == [(kind, rival) for rival in rivals for kind in ("learning", "general")]
    text, markdown = result.text(), (result.run / "first.md").read_text()
    for verdict in found["verdicts"]:
        assert verdict["arm"] == "grads 50%"
        assert f"* {verdict['sentence']}" in text
        assert verdict["sentence"].replace("<", "&lt;") in markdown
    assert markdown.startswith("* ")
    assert "\n\n| arm | seeds |" in markdown


def test_an_estimate_counts_what_is_asked(world, fresh_run, tmp_path):
    def tokens(test, **options):
        options = {"arms": ("full:seeds=1",), "epochs": 1, "general": (), **options}
        found = compare(fresh_run, test=str(test), dry_run=True, **options)
        speed = found.n_tokens / found.training_seconds
        return found.evaluation_seconds * 3 * speed

    rows = (world / "test.jsonl").read_text().splitlines(keepends=True)
    half = tmp_path / "half.jsonl"
    half.write_text("".join(rows[: len(rows) // 2]))
    asked = tokens(world / "test.jsonl", max_new_tokens=4)
    longer = tokens(world / "test.jsonl", max_new_tokens=7)
    assert longer - asked == pytest.approx(2 * 3 * len(rows))
    assert 0.3 * asked < tokens(half, max_new_tokens=4) < 0.7 * asked
    items = [tokens(half, max_new_tokens=4, general=("sanity",), limit=n) for n in (10, 20, 40)]
    assert items[2] - items[1] == pytest.approx(2 * (items[1] - items[0]), rel=0.3)
    # No question of the sanity benchmark is shorter than that in this tokenizer.
    assert items[1] - items[0] > 10 * 10


def test_a_forecast_knows_which_models_are_only_evaluated(world, fresh_run):
    options = {"arms": ("full:seeds=1",), "epochs": 1, "general": ()}
    options["test"] = str(world / "test.jsonl")
    compare(fresh_run, keep_models=True, max_new_tokens=4, **options)
    found = compare(fresh_run, max_new_tokens=5, dry_run=True, **options)
    assert (found.n_models, found.n_done, found.n_tokens) == (1, 0, 0)


def test_a_dry_run_trains_nothing(capsys, world, fresh_run):
    code, out, err = invoke(
        capsys, "compare", fresh_run, "--test", world / "test.jsonl", "--general",
        world / "text.txt", "--seeds", 2, "--epochs", 1, "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, err
    estimate = json.loads(out)["estimate"]
    assert (estimate["n_models"], estimate["n_done"]) == (9, 0)
    assert estimate["training_seconds"] > 0
    assert estimate["evaluation_seconds"] > 0
    assert not (fresh_run / "arms").exists()


def test_the_command_line_compares_and_prints_json(capsys, world, finished):
    _, expected = finished
    code, out, err = invoke(
        capsys, "compare", world / "run", "--test", world / "test.jsonl",
        "--arms", "base, full:seeds=1,full-equal-steps:seeds=1,random,grads",
        "--general", world / "text.txt", "--seeds", 2, "--epochs", 1,
        "--set", "max_new_tokens=4", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["verdicts"] == expected["verdicts"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("grad",)}, "arm 'grad': did you mean grand or grads"),
        ({"arms": ("full@50%",)}, "full has no budget"),
        ({"arms": ("base:alpha=0",)}, "base selects nothing"),
        ({"arms": ("grads:alpha",)}, "arm 'grads:alpha': alpha: expected key=value"),
        ({"arms": ("grads:alpha=-1",)}, "arm 'grads:alpha=-1': `alpha` is -1"),
        ({"arms": ("grads:nonsense=1",)}, "unknown key 'nonsense'"),
        ({"arms": ("grads:side=informative",)}, r"'side' is now called 'score' \(.*high-norm"),
        ({"arms": ("grads:seeds=0",)}, "seeds is 0"),
        ({"arms": ("grads@auto",)}, "auto"),
        ({"arms": ("grads",), "budgets": ()}, "no budget is given"),
        ({"arms": ("ogs-static",)}, "`anchor`"),
        ({"seeds": 0}, "`seeds` is 0"),
        ({"test": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"general": ("nowhere.txt",)}, "nowhere.txt"),
        ({"general": ("nowhere.yaml",)}, "nowhere.yaml"),
        ({"general": ("probe",)}, "sanity"),
        ({"name": "../x"}, "`name` is"),
        ({"sft": {"num_train_epochs": 3}}, "num_train_epochs"),
        ({"arms": ()}, "`arms` names none"),
        ({"arms": ("base:seeds=2",)}, "not trained, so it has no seeds"),
        ({"arms": ("grads:strategy=random",)}, "the name of the arm"),
        ({"arms": ("grads:alpha=[",)}, "neither JSON nor YAML"),
        ({"arms": ("grads@50%:seeds=1", "grads@50%:seeds=2")}, "twice, with other seeds"),
        ({"strategy": "random"}, "the names of the arms"),
        ({"name": "manifest"}, "manifest.json is there and is no comparison"),
        ({"epochs": 0}, "`epochs` is 0"),
        ({"epochs": float("inf")}, "`epochs` is inf"),
        ({"save_steps": 0}, "`save_steps` is 0"),
        ({"limit": 0}, "`limit` is 0"),
        ({"max_new_tokens": -1}, "`max_new_tokens` is -1"),
        ({"lora": {"zz": 2}}, "zz"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(world, log, changes, message):
    with pytest.raises(gs.GradsiftError, match=message):
        compared(world, **changes)
    assert not any("training 0" in line for line in log)


def test_test_rows_in_the_pool_are_told(world):
    result = compared(world, test=str(world / "data.jsonl"), arms=("base",), name="leak")
    assert "24 of 24 test rows stand word for word in the pool" in result.notes[0]


def test_sizes_said_in_other_words_are_compared_and_others_are_noted(world, finished):
    as_large = compared(world, name="words", arms=("base", "random@12", "grads@50%"))
    asked = {(v.question.arm, v.question.rival) for v in as_large.verdicts}
    assert asked == {("grads 50%", "random 12")}
    other = compared(world, name="other", arms=("base", "random@50%", "grads@5:seeds=1"))
    assert not other.verdicts
    assert any("grads 5: no random arm is as large" in note for note in other.notes)


def test_arms_that_are_the_same_models_are_noted(world, finished):
    arms = ("random@50%", "random@50%:alpha=0")
    result = compared(world, name="alike", arms=arms)
    assert "random 50% and random:alpha=0 50% are the same rows, trained alike" in result.notes
    assert len(result.board.arms) == 2


def test_an_arm_may_draw_with_a_seed_of_its_own(world, finished, log):
    arms = ("random@50%:seeds=1", "random@50%:seed=7:seeds=1")
    compared(world, name="draws", arms=arms)
    assert any(line.startswith("2 models") for line in log)


def test_an_arm_may_have_a_list_of_its_own(world, finished, tmp_path):
    (tmp_path / "drop").write_text("r00\nr01\n")
    text = f"random@22:drop={tmp_path / 'drop'}:seeds=1"
    (_, (model,)) = compared(
        world, name="lists", arms=("random@22:seeds=1", text)
    ).board.models.values()
    (path,) = (world / "run" / "arms").glob("random_drop*/scores.json")
    assert json.loads(path.read_text())["arm"] == model.arm.label
    everything = gs.select(world / "run", budget=22, strategy="random", drop=tmp_path / "drop")
    assert not {"r00", "r01"} & set(everything.selection.ids)


def test_few_items_are_noted_and_one_has_no_interval(world, tmp_path):
    test = tmp_path / "one.jsonl"
    test.write_text((world / "test.jsonl").read_text().splitlines(keepends=True)[0])
    arms = ("base", "full:seeds=1", "random@50%:seeds=1", "grads@50%:seeds=1")
    result = compared(world, name="one", test=str(test), arms=arms, general=("sanity",), limit=1)
    assert any("few items (1 of rows" in note for note in result.notes)
    learning = [v for v in result.verdicts if v.question.kind == "learning"]
    assert {v.answer for v in learning} <= {"cannot tell", "nothing to tell"}
    assert result.board.level("full", "accuracy").high == float("inf")
    found = json.loads((world / "run" / "one.json").read_text(), parse_constant=pytest.fail)
    assert found["arms"]["full"]["levels"]["loss"]["low"] is None
    assert "± ?" in result.text()


def test_pictures_of_an_earlier_comparison_of_that_name_do_not_stay(world, finished):
    compared(world, name="plots", arms=("base", "random:seeds=1", "grads:seeds=1"))
    picture = world / "run" / "plots-learning-forgetting.svg"
    assert ">base<" in picture.read_text()
    (world / "run" / "plots-budget.svg").write_text("of an earlier gradsift")
    compared(world, name="plots", arms=("random:seeds=1", "full:seeds=1"))
    assert not picture.exists()
    assert not (world / "run" / "plots-budget.svg").exists()
    assert "is better →" in (world / "run" / "plots-metrics.svg").read_text()


def test_held_out_rows_that_are_written_otherwise_are_named(world, tmp_path):
    run = tmp_path / "run"
    pool = gs.load_pool(
        str(world / "data.jsonl"), prompt_column="prompt", response_column="response"
    )
    gs.capture(str(world / "model"), pool, out=run, sft=TRAINING)
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(gs.GradsiftError, match=r"`test` .*other.jsonl: .* read as the run's rows"):
        compare(run, test=other, arms="base")


def test_held_out_rows_need_no_ids_and_may_be_a_split_or_a_pool(world, tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    rows = [json.loads(line) for line in (world / "data.jsonl").read_text().splitlines()]
    for row in rows:
        row["uid"] = row.pop("id")
    split = Dataset.from_list(rows)
    DatasetDict(
        {"train": split, "test": split.select(range(3)).remove_columns("uid")}
    ).save_to_disk(str(data))
    pool = gs.load_pool(data, id_column="uid", split="train")
    gs.capture(str(world / "model"), pool, out=run, sft=TRAINING)
    options = {"arms": "base", "general": (), "max_new_tokens": 4}
    found = compare(run, test=data, test_split="test", **options)
    again = compare(run, test=gs.load_pool(data, split="test"), **options)
    held = compare(run, test=rows[:3], **options)
    assert found.board.sizes == again.board.sizes == held.board.sizes == {"rows": 3, "answers": 3}
    with pytest.raises(gs.GradsiftError, match="`test`: `data` is a int; expected a file"):
        compare(run, test=3, **options)
    with pytest.raises(gs.GradsiftError, match="has the splits"):
        compare(run, test=data, **options)


def test_a_budget_of_tokens_is_not_called_equal_steps(world, finished):
    arms = ("full-equal-steps@300tok", "longest@300tok")
    one_by_one = {"per_device_train_batch_size": 1}
    result = compared(world, name="tokens", arms=arms, seeds=1, sft=one_by_one)
    steps = {label: models[0].n_steps for label, models in result.board.models.items()}
    assert steps["full-equal-steps 300tok"] != steps["longest 300tok"]
    assert not result.verdicts
    assert any("no full-equal-steps arm has as many steps" in note for note in result.notes)


def test_settings_of_several_words_are_taken_for_all_arms_too(capsys, world):
    code, _, err = invoke(
        capsys, "compare", world / "run", "--test", world / "test.jsonl", "--general", "",
        "--set", "layers=embedding", "--set", "detrend=step+response_length", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, err


def test_one_thing_needs_no_list(world, finished):
    found = compare(
        world / "run", test=world / "test.jsonl", arms="base", general=world / "text.txt",
        budgets="50%", max_new_tokens=4, dry_run=True,
    )  # fmt: skip
    assert (found.n_models, found.n_done) == (1, 1)
