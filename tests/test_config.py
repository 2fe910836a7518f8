import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from gradsift import config, schema
from gradsift.config import SelectionConfig
from gradsift.config_files import resolve, run_config
from gradsift.terms import LAYERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("head",)}, "layers"),
        ({"layers": ()}, "expected embedding, lm_head or both"),
        *(({"similarity_threshold": x}, "similarity_threshold") for x in (1.0, -0.1, float("nan"))),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": float("nan")}, "beta"),
        ({"gamma": float("inf")}, "gamma"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "nothing to maximise"),
        ({"seed": -1}, "seed"),
        ({"signal_statistics": ("norm",)}, "expected one or more of max, min"),
        ({"signal_statistics": ()}, "expected one or more of max, min"),
        ({"detrend": ("width",)}, "detrend"),
        ({"stratgy": "grads"}, "stratgy"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        SelectionConfig(**change)


def test_nothing_may_be_taken_off():
    assert SelectionConfig(detrend=("none",)).detrend == SelectionConfig(detrend=()).detrend == ()
    assert len(SelectionConfig().detrend) == 3


def test_a_preset_lies_beneath_what_is_said(tmp_path, caplog):
    plain, paper = SelectionConfig(), SelectionConfig(preset="paper")
    changed = {k for k in SelectionConfig.model_fields if getattr(plain, k) != getattr(paper, k)}
    assert changed == {"preset", *config.PRESETS["paper"]} - {"signal_statistics"}
    assert (paper.score, paper.layers, paper.detrend) == ("density", LAYERS, ())
    assert (paper.alpha, paper.beta, paper.gamma) == (1, 1, 1)
    assert SelectionConfig(preset="paper", score="low-norm").score == "low-norm"
    with pytest.raises(ValidationError, match="preset"):
        SelectionConfig(preset="papr")
    needed = {"data": "x", "model": "m", "out": "o"}
    file = tmp_path / "config.yaml"
    file.write_text("preset: paper\nscore: high-norm\n")
    assert resolve(needed, file).score == "high-norm"
    assert resolve({**needed, "score": "low-norm"}, file).score == "low-norm"
    assert resolve(needed, file).detrend == ()
    # What the command line calls wins over what a file spells out, as a run's own does.
    file.write_text("score: high-norm\ndetrend: [step]\n")
    caplog.set_level("INFO", logger="gradsift")
    assert resolve({**needed, "preset": "paper"}, file).score == "density"
    assert f"`preset` paper replaces, of {file}: detrend, score" in caplog.text


def test_blanks_between_scores_mean_nothing():
    assert SelectionConfig(score="prompt-gain + low-norm").score == "prompt-gain+low-norm"


# Other things of the same name: what the preliminary epoch is, and a sketch on its own.
OWN = {("TrainerSettings", "epochs"), ("SketchSpec", "seed"), ("select", "details")}


def defaults_in(tree):
    """Yield (function or class, name, default) of everything that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            names = [*a.posonlyargs, *a.args]
            pairs = list(zip(names[len(names) - len(a.defaults) :], a.defaults, strict=True))
            pairs += zip(a.kwonlyargs, a.kw_defaults, strict=True)
            yield from ((node.name, one.arg, default) for one, default in pairs if default)
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value is not None:
                    yield node.name, line.target.id, line.value


def test_a_default_is_written_once():
    """Elsewhere a setting has no default, or None, or one that is read off the settings."""
    names = {name for group in groups() for name in group.model_fields}
    again = []
    for path in (Path(config.__file__).parent).rglob("*.py"):
        if path.name in ("config.py", "schema.py"):
            continue
        for place, name, default in defaults_in(ast.parse(path.read_text())):
            literal = isinstance(default, ast.Constant) and default.value is not None
            if name in names and literal and (place, name) not in OWN:
                again.append(f"{path.name}: {place}({name}={ast.unparse(default)})")
    assert not again


def groups():
    return [
        thing
        for thing in vars(config).values()
        if isinstance(thing, type) and issubclass(thing, schema.Group)
    ]


def test_the_same_default_stands_in_no_second_group():
    """A group that has a setting of another inherits it, unless it says something else."""
    own = {}
    for group in groups():
        for name in group.__annotations__.keys() & group.model_fields.keys():
            field = group.model_fields[name]
            key = (name, str(schema.default_of(field)), str(field.annotation), field.description)
            own.setdefault(key, []).append(group)
    assert [repeated for repeated in own.values() if len(repeated) > 1] == []


def test_every_setting_says_what_it_is():
    for group in groups():
        for name, field in group.model_fields.items():
            assert (field.description or "").endswith("."), (group, name)


def test_files_in_sft_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("t.jinja", "ds.json", "fsdp.json")
    for name in names:
        (tmp_path / name).write_text("{}")
    sft = {"chat_template_path": "t.jinja", "deepspeed": "ds.json", "fsdp_config": "fsdp.json"}
    saved = run_config({"data": "x", "model": "a/b", "out": "y", "sft": sft | {"optim": "sgd"}}).sft
    assert saved == {key: str(tmp_path / sft[key]) for key in sft} | {"optim": "sgd"}
    assert run_config(
        {"data": "x", "model": "a/b", "out": "y", "sft": {"chat_template_path": "a/hub-id"}}
    ).sft == {"chat_template_path": "a/hub-id"}
