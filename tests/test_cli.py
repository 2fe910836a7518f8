"""The whole way through the command line, on a tiny model: from a file to a smaller file."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from gradsift.cli.main import main
from gradsift.commands.capture import CaptureResult
from gradsift.store.reader import read_store
from tiny import save_tiny

BROKEN = '{"prompt": "broken", "response": \n'


def invoke(capsys, *arguments):
    """Run the command line in this process; return exit code, stdout and stderr."""
    sys_argv, sys.argv = sys.argv, ["gradsift", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = sys_argv
    out, err = capsys.readouterr()
    return code, out, err


def input_lines():
    words = ["red", "green", "blue", "cat", "dog", "tree", "stone", "river"]
    lines = []
    for i in range(30):
        answer = " ".join(words[(i * j) % 8] for j in range(1, 5 + i % 6))
        row = {"id": f"row{i}", "prompt": f"what is {i}?", "response": answer, "meta": {"n": i}}
        lines.append(json.dumps(row, separators=(",", ": ") if i % 2 else None) + "\n")
    lines.insert(7, BROKEN)
    lines.insert(9, json.dumps({"id": "empty", "prompt": "x", "response": ""}) + "\n")
    lines.insert(11, lines[3])
    return lines


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    (folder / "data.jsonl").write_text("".join(input_lines()))
    return folder


@pytest.fixture(scope="module")
def finished(world):
    command = ["run", world / "data.jsonl", "--model", world / "model", "--out", world / "run"]
    command += ["--budget", "50%", "--sft", "learning_rate=1e-3", "--sft"]
    command += ["per_device_train_batch_size=4"]
    done = subprocess.run(
        [sys.executable, "-m", "gradsift", *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def selected_lines(run, name):
    return (run / "selections" / name / "selected.jsonl").read_text().splitlines(keepends=True)


def test_the_next_command_can_be_pasted(world, finished, tmp_path, capsys):
    spaced = tmp_path / "a folder; $HOME"
    shutil.copytree(world / "run", spaced)
    command = CaptureResult(read_store(spaced)).text().partition("next: gradsift ")[2]
    code, _, err = invoke(capsys, *shlex.split(command))
    assert code == 0, err


def test_run_accounts_for_every_row(world, finished):
    assert "15 selected + 15 rejected + 3 dropped = 33 rows" in finished.stdout
    assert "self-check: 2 rows equal autograd" in finished.stderr
    assert "line 8" in finished.stderr
    assert "30/30 rows" in finished.stderr
    decisions = pq.read_table(world / "run/selections/grads-50pct/decisions.parquet").to_pylist()
    assert Counter(row["decision"] for row in decisions) == {
        "selected": 15,
        "rejected": 15,
        "dropped": 3,
    }
    assert [row["line"] for row in decisions] == list(range(1, 34))
    assert all(row["reason"] for row in decisions)


def test_selected_lines_are_the_inputs_own_in_its_order(world, finished):
    chosen = selected_lines(world / "run", "grads-50pct")
    lines = input_lines()
    assert len(chosen) == 15
    at = [lines.index(line) for line in chosen]
    assert at == sorted(at)
    decisions = pq.read_table(world / "run/selections/grads-50pct/decisions.parquet").to_pylist()
    assert [row["row"] for row in decisions if row["selected"]] == at


def test_running_again_does_nothing_and_config_runs_by_itself(capsys, world, finished):
    before = selected_lines(world / "run", "grads-50pct")
    code, out, err = invoke(capsys, "run", "--config", world / "run/config.yaml")
    assert code == 0
    assert "nothing to do" in err
    assert "15 selected" in out
    assert selected_lines(world / "run", "grads-50pct") == before


def test_select_again_explain_and_json(capsys, world, finished):
    run = world / "run"
    code, out, err = invoke(capsys, "select", run, "--budget", "5", "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert (summary["selected"], summary["rejected"], summary["dropped"]) == (5, 25, 3)
    assert set(summary["criteria"]) == {"subset", "pool", "random"}
    code, out, _ = invoke(capsys, "explain", run, "row3")
    assert code == 0
    assert "row3 (line 4)" in out
    assert "grads-5:" in out
    code, out, _ = invoke(capsys, "explain", run, "line:8", "--json")
    assert json.loads(out)["reason"] == "unreadable_line"
    code, _, err = invoke(capsys, "explain", run, "nobody")
    assert code == 2
    assert "no row 'nobody'" in err


def test_random_and_tokens(capsys, world, finished):
    run = world / "run"
    code, out, _ = invoke(
        capsys, "select", run, "--budget", "400tok", "--strategy", "random", "--json"
    )
    assert code == 0
    assert 0 < json.loads(out)["n_tokens"] <= 400
    names = [path.name for path in (run / "selections/random-400tok").iterdir()]
    assert {"selected.jsonl", "decisions.parquet", "selection.json", "report.html"} == set(names)


def test_weights_stay_out_of_the_users_rows(capsys, world, finished):
    run = world / "run"
    invoke(capsys, "select", run, "--budget", "10", "--set", "weights=true", "--name", "weighted")
    assert set(selected_lines(run, "weighted")) <= set(input_lines())
    rows = pq.read_table(run / "selections/weighted/decisions.parquet").to_pylist()
    weights = [row["weight"] for row in rows if row["selected"]]
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert all(row["weight"] is None for row in rows if not row["selected"])


def test_another_selection_does_not_take_a_name_that_is_taken(capsys, world, finished):
    run = world / "run"
    taken = ("--name", "grads-50pct")
    code, _, err = invoke(capsys, "select", run, "--budget", "50%", "--set", "gamma=0", *taken)
    assert code == 2
    assert "other settings (gamma)" in err


MISTAKES = [
    (["run", "nowhere.jsonl", "--model", "m", "--out", "o", "--budget", "5"], "no such file"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}"], "--budget is missing"),
    (["run", "{data}", "--model", "{model}", "--budget", "5"], "--out is missing"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}", "--budget", "half"], "budget"),
    (["capture", "{data}", "--model", "{data}", "--out", "{new}"], "cannot load the"),
    (["capture", "{data}", "--model", "{model}", "--out", "{new}", "--sft", "x"], "key=value"),
    (["capture", "{data}", "--model", "{model}", "--out", "{new}", "--sft", "lr=1"], "lr"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}", "--max-length", "1"],
     "--max-length is 1"),
    (["run", "{data}", "--model", "{model}", "--out", "{run}", "--seed", "5", "--budget", "3"],
     "seed: the store has 0, now it is 5"),
    (["select", "{run}", "--budget", "500"], "at most 30"),
    (["select", "{run}", "--budget", "5", "--strategy", "best"], "grads, random"),
    (["select", "{run}", "--budget", "5", "--score", "low-nrm"], "did you mean low-norm"),
    (["select", "{run}", "--budget", "5", "--score", "consistent"], "it is now called low-norm"),
    (["select", "{run}", "--budget", "5", "--side", "balanced"],
     "--side is now --score (consistent is low-norm"),
    (["select", "{run}", "--budget", "5", "--near-threshold", "0.9"],
     "--near-threshold is now --set similarity_threshold=VALUE"),
    (["select", "{run}", "--budget", "5", "--gamma", "0"], "write --set gamma=VALUE"),
    (["select", "{run}", "--budget", "5", "--layer", "lm_head"],
     "write --set layers=VALUE; several go as A+B"),
    (["select", "{run}", "--budget", "5", "--set", "alhpa=0"], "did you mean alpha"),
    (["select", "{run}", "--budget", "5", "--set", "side=balanced"], "is now called 'score'"),
    (["select", "{run}", "--budget", "5", "--stratgy", "random"], "did you mean --strategy?"),
    (["select", "{run}", "--budget", "5", "--no-weights"], "did you mean --set weights=false?"),
    (["select", "{run}", "--budget", "5", "--set", "layers=lm_head", "--set", "layers=embedding"],
     "layers is said twice"),
    (["select", "{run}", "--budget"], "(gradsift select --help)"),
    (["selct", "{run}"], "did you mean select"),
    (["losses", "{run}"], "is now called: gradsift reference-losses"),
    (["run", "{data}", "--sft", "learning_rate=1", "--set", "sft.learning_rate=2"],
     "sft.learning_rate is said twice"),
    (["run", "{data}", "--full", "--set", "lora.r=4"], "lora.r is said twice"),
    (["run", "{data}", "--max-length", "7", "--set", "max_length=5"], "max_length is said twice"),
    (["run", "{data}", "--set", "max_length="], "expected key=value"),
    (["run", "{data}", "--set", "selection.max_length=5"], "is in the group capture"),
    (["run", "{data}", "--set", "model.dtype=bf16"], "did you mean bfloat16?"),
    (["run", "{data}", "--dry-rn"], "did you mean --dry-run?"),
    (["run", "{data}", "--no-lora"], "did you mean --full?"),
    (["check", "--model", "{model}"], "it is the argument"),
    (["train", "{run}", "--arm", "grad", "--budget", "5"], "did you mean grand or grads?"),
    (["capture", "{data}", "--model", "{model}", "--out", "{new}", "--sft", "learning_rat=1"],
     "learning_rat (did you mean learning_rate"),
    (["select", "{run}", "--budget", "5", "--set", "alpha=-1"], "alpha is -1"),
    (["select", "{new}", "--budget", "5"], "no gradient store here"),
    (["select", "{run}"], "budget"),
    (["select", "{run}", "--budget", "5", "--name", "../../out"], "--name is '../../out'"),
    (["select", "{run}", "--budget", "5", "--name", "."], "--name is '.'"),
    (["select", "{run}", "--budget", "5", "--name", ""], "--name is ''"),
    (["select", "{run}", "--budget", "5", "--seed=-1"], "seed is -1"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}", "--budget", "5", "--strategy", "x"],
     "strategy is 'x'"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}", "--budget", "31"], "at most 30"),
    (["run", "{data}", "--model", "{model}", "--out", "{new}", "--budget", "x", "--dry-run"],
     "budget 'x' is not understood"),
    (["run", "--config", "{truth}"], "budget is True"),
    (["capture", "{data}", "--model", "{cut}", "--out", "{new}"], "cannot load the model"),
    (["capture", "{data}", "--model", "{model}", "--out", "{own}"], "holds config.yaml but no run"),
    (["capture", "{data}", "--model", "{model}", "--out", "{new}", "--sft", "optim=[1"],
     "neither JSON nor YAML"),
    (["explain", "{run}", "row3", "--name", "nope"], "no selection 'nope'; there are: grads"),
    (["explain", "{new}", "x"], "not a run folder"),
    (["run", "--config", "{bad}"], "unknown key 'budgett'; did you mean budget"),
    (["run", "--config", "{new}/x.yaml"], "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys, world, finished, tmp_path, arguments, message
):
    (tmp_path / "bad.yaml").write_text("data: x\nmodel: y\nout: z\nbudgett: 5\n")
    truth = {"data": str(world / "data.jsonl"), "model": "m", "out": "o", "budget": True}
    (tmp_path / "truth.yaml").write_text(yaml.safe_dump(truth))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.yaml").write_text("mine: 1")
    shutil.copytree(world / "model", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    places = {
        "truth": tmp_path / "truth.yaml",
        "own": tmp_path / "own",
        "cut": tmp_path / "cut",
        "data": world / "data.jsonl",
        "model": world / "model",
        "run": world / "run",
        "new": tmp_path / "new",
        "bad": tmp_path / "bad.yaml",
    }
    code, out, err = invoke(capsys, *(a.format(**places) for a in arguments))
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new" / "gradients").exists()
    last = [line for line in err.splitlines() if line.startswith("gradsift: ")]
    assert len(last) == 1 or "Usage" in err


def test_a_run_folder_works_from_anywhere(capsys, world, tmp_path, monkeypatch):
    import gradsift as gs

    monkeypatch.chdir(world)
    gs.capture("model", gs.load_pool("data.jsonl"), out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert gs.select("run", budget=3).counts["selected"] == 3
    code, _, err = invoke(capsys, "capture", "--config", tmp_path / "run/config.yaml")
    assert code == 0
    assert "nothing to do" in err


def test_a_folder_called_demo_does_not_hide_the_demo_model(tmp_path, monkeypatch):
    from gradsift.config_files import run_config

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    config = run_config({"data": "demo", "model": "demo", "out": "demo"})
    assert (config.model, config.data) == ("demo", str(tmp_path / "demo"))


def test_settings_of_a_refused_selection_are_not_saved(capsys, world, finished):
    run = world / "run"
    before = (run / "config.yaml").read_text()
    more = ("--set", "alpha=2", "--name", "grads-50pct")
    code, _, err = invoke(capsys, "run", "--config", run / "config.yaml", *more)
    assert code == 2
    assert "other settings (alpha)" in err
    code, _, _ = invoke(capsys, "capture", "--config", run / "config.yaml")
    assert code == 0
    assert (run / "config.yaml").read_text() == before


def test_settings_of_a_run_that_never_began_are_not_saved(capsys, world, tmp_path):
    code, _, _ = invoke(
        capsys, "capture", world / "data.jsonl", "--model", world, "--out", tmp_path / "run"
    )
    assert code == 2
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_length": "abc"}, "max_length"),
        ({"sketch_size": 0}, "`sketch_size` is 0"),
        ({"sketch_size": 1000}, "64, 128"),
    ],
)
def test_python_checks_settings_too(world, tmp_path, option, message):
    import gradsift as gs

    pool = gs.load_pool(str(world / "data.jsonl"))
    with pytest.raises(ValueError, match=message):
        gs.capture(str(world / "model"), pool, out=tmp_path / "run", **option)


def test_decisions_have_the_same_types_whatever_the_strategy(capsys, world, finished):
    run = world / "run"
    for strategy in ("grads", "random"):
        invoke(capsys, "select", run, "--budget", "7", "--strategy", strategy)
    schemas = [
        pq.read_schema(run / f"selections/{strategy}-7/decisions.parquet")
        for strategy in ("grads", "random")
    ]
    assert schemas[0].equals(schemas[1])


def test_version(capsys):
    from gradsift.version import __version__

    assert invoke(capsys, "--version") == (0, f"{__version__}\n", "")


def test_without_torch_selecting_works_and_capturing_says_what_to_install(
    capsys, world, finished, tmp_path
):
    """As after `pip install gradsift` without extras."""
    absent = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "trl", "peft", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from gradsift.cli.main import main
main()
"""
    select = ["select", world / "run", "--budget", "4"]
    capture = ["capture", world / "data.jsonl", "--model", world / "model", "--out", tmp_path / "x"]
    done = [
        subprocess.run(
            [sys.executable, "-c", absent, *map(str, command)], capture_output=True, text=True
        )
        for command in (select, capture)
    ]
    assert done[0].returncode == 0, done[0].stderr
    assert "4 selected" in done[0].stdout
    assert done[1].returncode == 2
    assert "pip install 'gradsift[train]'" in done[1].stderr.splitlines()[-1]


def test_a_changed_input_is_refused(capsys, world, finished, tmp_path):
    data = world / "data.jsonl"
    before = data.read_bytes()
    data.write_bytes(before + b"\n")
    try:
        code, _, err = invoke(capsys, "select", world / "run", "--budget", "3")
    finally:
        data.write_bytes(before)
    assert code == 2
    assert "changed since the capture" in err


def test_a_file_in_the_way_of_the_run_folder_is_one_line(capsys, world, tmp_path):
    (tmp_path / "taken").write_text("")
    command = ["capture", world / "data.jsonl", "--model", world / "model"]
    code, _, err = invoke(capsys, *command, "--out", tmp_path / "taken/run")
    assert code == 2
    assert "Not a directory" in err.splitlines()[-1]


def test_numbers_in_yaml_are_numbers(tmp_path):
    from gradsift.config_files import read_yaml

    (tmp_path / "c.yaml").write_text("a: 1e-4\nb: 2.5E3\nc: 1e5x\nd: '1e-4'\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": 1e-4, "b": 2500.0, "c": "1e5x", "d": "1e-4"}


def test_dry_run_trains_and_writes_nothing(capsys, world, tmp_path):
    command = ["capture", world / "data.jsonl", "--model", world / "model", "--dry-run"]
    code, out, _ = invoke(capsys, *command, "--out", tmp_path / "new", "--json")
    assert code == 0
    assert json.loads(out)["estimate"]["n_instances"] == 30
    assert not (tmp_path / "new").exists()


def test_the_command_line_wins_over_the_file(capsys, world, tmp_path):
    settings = {
        "data": str(world / "data.jsonl"),
        "model": str(world / "model"),
        "out": str(tmp_path / "run"),
        "budget": "50%",
        "sft": {"learning_rate": 1e-4},
        "lora": {"r": 2},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    command = ["run", "--config", tmp_path / "c.yaml", "--budget", "4", "--sft", "max_grad_norm=2"]
    code, out, _ = invoke(capsys, *command)
    assert code == 0
    assert "4 selected" in out
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert resolved["budget"] == "4"
    assert resolved["lora"] == {"r": 2}
    assert resolved["sft"] == {"learning_rate": 1e-4, "max_grad_norm": 2}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["select", "{run}", "--budget", "3"]]
)
def test_help_and_select_do_not_import_torch(world, finished, arguments):
    code = (
        "import sys; sys.argv = ['gradsift', *sys.argv[1:]]\n"
        "from gradsift.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()"
    )
    filled = [a.format(run=world / "run") for a in arguments]
    subprocess.run([sys.executable, "-c", code, *filled], check=True, capture_output=True)


def capture(capsys, world, out, *options):
    command = ["capture", world / "data.jsonl", "--model", world / "model", "--out", out]
    return invoke(capsys, *command, "--sft", "per_device_train_batch_size=4", *options)


def test_a_scoring_pass_and_its_agreement(capsys, world, finished, tmp_path):
    code, _, err = capture(capsys, world, tmp_path / "tenth", "--set", "warmup_fraction=0.1")
    assert code == 0, err
    assert "training on 3 of 30 instances" in err
    assert "scoring all instances" in err
    manifest = json.loads((tmp_path / "tenth" / "manifest.json").read_text())
    assert manifest["layers"] == ["lm_head"]
    assert manifest["about"]["self_check"]["method"] == "fused"
    assert not (tmp_path / "tenth" / "checkpoints").exists()
    code, out, err = invoke(capsys, "agreement", world / "run", tmp_path / "tenth", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["n_instances"] == 30
    assert found["rank_correlation"]["lm_head l2_norm"] > 0.6
    assert "embedding l2_norm" not in found["rank_correlation"]
    code, out, _ = invoke(capsys, "agreement", world / "run", world / "run")
    assert code == 0
    assert "embedding l2_norm     +1.000" in out
    code, out, err = invoke(capsys, "select", tmp_path / "tenth", "--budget", "50%")
    assert code == 0, err
    code, out, err = invoke(capsys, "explain", tmp_path / "tenth", "row3")
    assert code == 0, err
    assert "lm_head norm" in out
    assert "embedding norm" not in out
    code, _, err = invoke(
        capsys, "select", tmp_path / "tenth", "--budget", "49%", "--set", "layers=embedding"
    )
    assert code == 2
    assert "layer 'embedding' is unknown, expected one of lm_head" in err
    code, _, err = invoke(
        capsys, "select", tmp_path / "tenth", "--budget", "49%", "--preset", "paper"
    )
    assert code == 2
    assert "this run recorded no other" in err
    assert "layers lm_head, beside a --preset, too" in err


def test_a_run_that_scores_says_the_same_again_from_its_config(capsys, world, tmp_path):
    code, _, err = capture(capsys, world, tmp_path / "zero", "--set", "warmup_fraction=0")
    assert code == 0, err
    assert "training on" not in err
    code, _, err = invoke(capsys, "capture", "--config", tmp_path / "zero" / "config.yaml")
    assert code == 0, err
    assert "the capture is complete" in err
    code, _, err = capture(capsys, world, tmp_path / "zero")
    assert code == 2
    assert "warmup_fraction: the store has 0.0, now it is 1.0" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "record_at=during", "--set", "signal=head"),
        ("--set", "record_at=during", "--set", "capture.warmup_fraction=0.5"),
    ],
)
def test_what_cannot_be_recorded_during_the_epoch_is_refused(capsys, world, tmp_path, options):
    code, _, err = capture(capsys, world, tmp_path, *options)
    assert code == 2
    assert "need --set record_at=after" in err


def test_check(capsys, world):
    code, out, err = invoke(capsys, "check", world / "model")
    assert code == 0, err
    assert "(LlamaForCausalLM, 0 M parameters)" in out
    assert "recording is exact here: 2 rows equal autograd" in out
    code, out, _ = invoke(
        capsys, "check", world / "model", "--lora", "--set", "recording=hooked", "--json"
    )
    assert code == 0
    assert json.loads(out)["method"] == "hooked"
    code, _, err = invoke(capsys, "check", world / "model", "--set", "recording=guess")
    assert code == 2
    assert "recording is 'guess': Input should be 'auto', 'fused'" in err


def test_agreement_of_different_rows_is_refused(capsys, world, finished, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "response": "b c d"}\n' * 3)
    command = ["capture", tmp_path / "other.jsonl", "--model", world / "model"]
    assert invoke(capsys, *command, "--out", tmp_path / "o", "--set", "warmup_fraction=0")[0] == 0
    code, _, err = invoke(capsys, "agreement", world / "run", tmp_path / "o")
    assert code == 2
    assert "have 0 rows in common" in err


def test_what_is_a_bug_is_told_as_one(capsys, world, finished, monkeypatch):
    """numpy's ValueErrors, too: only what the user can mend is one line with exit code 2."""
    from gradsift.commands import select as module

    def broken(*_):
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(module, "select_rows", broken)
    code, out, err = invoke(capsys, "select", world / "run", "--budget", "6")
    assert (code, out) == (1, "")
    assert err.startswith("gradsift: ValueError in select.py, line ")
    assert "operands could not be broadcast together. This is a mistake of gradsift's own" in err
    assert "Traceback" not in err
    code, _, err = invoke(capsys, "select", world / "run", "--budget", "6", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_debug_shows_where_a_users_mistake_was_found(capsys, world, finished):
    code, _, err = invoke(capsys, "--debug", "select", world / "run", "--budget", "500")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("gradsift: budget 500 asks for 500 rows")


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "train"), ("altair", "compare"), ("lm_eval", "compare"), ("vl_convert", "compare"),
     ("bitsandbytes", "quantized"), ("rouge_score.rouge_scorer", "compare"), ("nonsense", None)],
)  # fmt: skip
def test_a_missing_package_names_its_extra(module, extra):
    from gradsift.cli.errors import told

    code, line = told(ModuleNotFoundError(f"No module named {module!r}", name=module), ())
    assert code == (1 if extra is None else 2)
    assert (f"pip install 'gradsift[{extra}]'" in line) == (extra is not None)


def test_a_bug_where_a_package_was_missing_is_a_bug():
    """Only an import that failed is mended by installing something."""
    from gradsift.cli.errors import told

    bug = KeyError("absent")
    bug.__context__ = ModuleNotFoundError("No module named 'altair'", name="altair")
    assert told(bug, ())[0] == 1
    wrapped = ModuleNotFoundError("Could not import module 'Trainer'")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'peft'", name="peft")
    assert "gradsift[train]" in told(wrapped, ())[1]


def test_settings_in_a_message_are_the_options_of_the_command():
    from gradsift.cli.errors import told
    from gradsift.errors import GradsiftError

    error = GradsiftError("`max_length` is 1, `truncation` is x, and `nonsense` stays")
    _, line = told(error, ("run", "data"))
    assert line == "--max-length is 1, --set truncation is x, and `nonsense` stays"


def test_usual_settings_are_options_and_the_others_are_named(capsys):
    _, out, _ = invoke(capsys, "run", "--help")
    options = re.findall(r"^│ \*? *(--[\w-]+)", out, flags=re.MULTILINE)
    assert len(options) <= 30
    assert {"--model", "--budget", "--out", "--score", "--set", "--config"} <= set(options)
    for panel in ("Data", "Model", "Selection", "Advanced"):
        assert f"─ {panel} ─" in out
    assert "warmup_fraction" in out
    assert out.count("gradsift run ") >= 3


def test_set_takes_a_group_in_front_and_what_is_nested(capsys, world, tmp_path):
    code, _, err = capture(
        capsys, world, tmp_path / "set", "--set", "capture.max_length=40", "--set", "lora.r=2",
        "--set", "sft.max_grad_norm=2", "--sft", "learning_rate=1e-4",
    )  # fmt: skip
    assert code == 0, err
    config = yaml.safe_load((tmp_path / "set/config.yaml").read_text())
    assert (config["max_length"], config["lora"]) == (40, {"r": 2})
    assert config["sft"] == {
        "per_device_train_batch_size": 4, "learning_rate": 1e-4, "max_grad_norm": 2,
    }  # fmt: skip


def test_shells_complete_choices():
    from typer.main import get_command

    from gradsift.cli.main import app
    from gradsift.selection.scores import SCORES
    from gradsift.selection.strategies.catalogue import STRATEGIES

    def completed(command, option, incomplete=""):
        parameter = next(p for p in get_command(app).commands[command].params if p.name == option)
        return {item.value for item in parameter.shell_complete(None, incomplete)}

    assert completed("select", "strategy") == set(STRATEGIES)
    assert completed("run", "score") == set(SCORES)
    joined = completed("run", "score", "prompt-gain+low")
    assert joined == {"prompt-gain+low-norm"}
    assert completed("run", "dtype") == {"float32", "bfloat16", "float16"}
    assert {"full", "grads"} <= completed("compare", "arms")


def test_strategies_are_listed_without_a_run(capsys):
    from gradsift.selection.scores import SCORES
    from gradsift.selection.strategies.catalogue import STRATEGIES

    code, out, _ = invoke(capsys, "strategies")
    assert code == 0
    for name, entry in {**STRATEGIES, **SCORES}.items():
        assert f"  {name:28}{entry.summary}" in out
