"""What comes from others runs nothing: model folders, configurations, run folders."""

from __future__ import annotations

import json
import pickle
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import yaml

import gradsift as gs
from comparing import Killed, die
from gradsift.comparison import training_runs
from gradsift.data.example import Chat
from gradsift.data.rendering import asks_for_the_day
from gradsift.data.tokenization import build_instances
from gradsift.evaluation.generation import generate
from gradsift.training.model import find_model, load_config, load_model, load_tokenizer
from gradsift.training.settings import checks
from gradsift.training.settings.trainer import TrainerSettings, require_settings
from tiny import save_tiny


class Payload:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


class Attack:
    """A model's folder, and a file whose existence shows that something ran."""

    def __init__(self, folder):
        self.folder, self.mark = folder, folder.parent / "it-ran"
        self.run = f"import pathlib\npathlib.Path({str(self.mark)!r}).touch()\n"

    def say(self, file, **values):
        path = self.folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))

    def code(self, name="boom.py"):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(
            f"{self.run}from transformers import LlamaConfig, LlamaForCausalLM\n"
            "from transformers import PreTrainedTokenizerFast\n"
            "class Model(LlamaForCausalLM): pass\nclass Config(LlamaConfig): pass\n"
            "class Tokenizer(PreTrainedTokenizerFast): pass\n"
            "def generate(*_, **__): pass\n"
        )

    def pickle(self, name):
        with (self.folder / name).open("wb") as file:
            pickle.dump(Payload(self.run), file)

    def adapt(self, base):
        lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        mapped = {"base_model_class": "Model", "parent_library": "boom"}
        self.say("adapter_config.json", base_model_name_or_path=base, auto_mapping=mapped, **lora)


AUTO = {"AutoConfig": "boom.Config", "AutoModelForCausalLM": "boom.Model"}
TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}"
QUANTISED = {"_type": "os.system", "_data": "touch MARK"}


def code_beside(a):
    a.code()
    a.say("config.json", auto_map=AUTO)


def code_of_a_new_type(a):
    a.code()
    a.say("config.json", auto_map=AUTO, model_type="boomer")


def code_of_the_hub(a):
    a.say("config.json", model_type="boomer", auto_map={"AutoConfig": "some/one--boom.Config"})


def code_of_the_tokenizer(a):
    a.code()
    mapped = {"AutoTokenizer": ["boom.Tokenizer", "boom.Tokenizer"]}
    a.say("tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=mapped)


def code_of_a_part(a):
    a.code()
    a.say("config.json", text_config={"model_type": "boomer", "auto_map": AUTO})


def code_that_generates(a):
    a.code("custom_generate/generate.py")
    a.say("generation_config.json", custom_generate=str(a.folder))


def pickled_weights(a):
    (a.folder / "model.safetensors").unlink()
    a.pickle("pytorch_model.bin")


def pickled_weights_named(a):
    a.pickle("x.bin")
    a.say("config.json", transformers_weights="x.bin")


def pickled_weights_in_the_index(a):
    (a.folder / "model.safetensors").unlink()
    a.pickle("x.bin")
    a.say("model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "x.bin"})


def pickled_weights_called_safe(a):
    a.pickle("model.safetensors")


def pickled_adapters(a):
    a.code()
    a.adapt(str(a.folder.parent / "model"))
    a.pickle("adapter_model.bin")


def adapters_of_another_model(a):
    a.adapt(str(a.folder.parent / "model"))


def pickled_vocabulary(a):
    (a.folder / "tokenizer.json").unlink()
    for name in ("tokenizer.model", "vocab.pkl", "vocab.bin", "vocab.json", "merges.txt"):
        a.pickle(name)
    a.say("tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")


def kernels_for_attention(a):
    a.say("config.json", _attn_implementation="some/kernels")


def kernels_named_otherwise(a):
    a.say("config.json", attn_implementation="some/kernels@main:run")


def kernels_for_experts(a):
    a.say("config.json", _experts_implementation="some/kernels")


def weights_quantised_by_code(a):
    quantised = {"_type": "os.system", "_data": f"touch {a.mark}"}
    settings = {"quant_method": "torchao", "quant_type": {"default": quantised}}
    a.say("config.json", quantization_config=settings)


def weights_quantised_by_a_class(a):
    a.code()
    a.say("config.json", quantization_config={"quant_method": "boom.Model"})


def names_of_python(a):
    a.say("config.json", dtype=f"__import__('os').system('touch {a.mark}')")


def an_activation_of_python(a):
    a.say("config.json", hidden_act="os.system")


def a_template_beside(a):
    (a.folder / "chat_template.jinja").write_text(TEMPLATE.replace("MARK", str(a.mark)))


def a_template_in_the_tokenizer(a):
    (a.folder / "chat_template.jinja").unlink()
    a.say("tokenizer_config.json", chat_template=TEMPLATE.replace("MARK", str(a.mark)))


ATTACKS = (
    code_beside,
    code_of_a_new_type,
    code_of_the_hub,
    code_of_the_tokenizer,
    code_of_a_part,
    code_that_generates,
    pickled_weights,
    pickled_weights_named,
    pickled_weights_in_the_index,
    pickled_weights_called_safe,
    pickled_adapters,
    adapters_of_another_model,
    pickled_vocabulary,
    kernels_for_attention,
    kernels_named_otherwise,
    kernels_for_experts,
    weights_quantised_by_code,
    weights_quantised_by_a_class,
    names_of_python,
    an_activation_of_python,
    a_template_beside,
    a_template_in_the_tokenizer,
)
# These are plain models beside the code; all others are refused, in one line.
GOES_ON = (code_beside, code_that_generates, a_template_beside, a_template_in_the_tokenizer)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.__name__)
def test_a_model_runs_nothing(tmp_path, attack):
    save_tiny(tmp_path / "model")
    made = Attack(Path(shutil.copytree(tmp_path / "model", tmp_path / "theirs")))
    attack(made)
    # Not because a package is missing that could run it.
    why = "asks for the kernels" if "kernels" in attack.__name__ else None
    goes_on = nullcontext() if attack in GOES_ON else pytest.raises(gs.GradsiftError, match=why)
    with goes_on:
        use(str(made.folder))
    assert not made.mark.exists()


def use(model):
    """Do with a model what capture, train and compare do."""
    source = find_model(model)
    load_config(source)
    tokenizer = load_tokenizer(source)
    generate(load_model(source).eval(), tokenizer, [[5, 6]], max_new_tokens=2)
    asks_for_the_day(tokenizer)
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    build_instances([("a", Chat(messages, (False, True)))], tokenizer)


def test_the_attacks_are_attacks(tmp_path):
    """With trust the code runs, and a pickle that is opened as one does."""
    save_tiny(tmp_path / "model")
    made = Attack(Path(shutil.copytree(tmp_path / "model", tmp_path / "theirs")))
    code_of_a_new_type(made)
    load_config(find_model(str(made.folder), trust_remote_code=True))
    assert made.mark.exists()
    made.mark.unlink()
    made.pickle("x.bin")
    pickle.loads((made.folder / "x.bin").read_bytes())
    assert made.mark.exists()


@pytest.fixture
def theirs(world, tmp_path):
    """A run folder whose model has code of its own, which config.yaml says may run."""
    made = Attack(Path(shutil.copytree(world / "model", tmp_path / "model")))
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    code_of_a_new_type(made)
    code_of_the_tokenizer(made)
    shutil.copy(world / "test.jsonl", tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"model": str(made.folder), "trust_remote_code": True}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run, made


COMMANDS = {
    "train": lambda run, more: gs.train(run, arm="full", **more),
    "compare": lambda run, more: gs.compare(run, test=run.parent / "test.jsonl", **more),
    "reference_losses": lambda run, more: gs.reference_losses(run, **more),
    "audit": lambda run, more: gs.audit(run, **more),
    "tokenizer": lambda run, more: gs.Run(run, **more).tokenizer,
    "instances": lambda run, more: gs.Run(run, **more).instances,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_folder_does_not_say_whether_code_runs(theirs, command, log):
    run, made = theirs
    with pytest.raises(gs.GradsiftError):
        COMMANDS[command](run, {})
    asked = [line for line in log if "asks for code" in line]
    assert len(asked) == 1
    assert str(run / "config.yaml") in asked[0]
    assert "trust_remote_code" in asked[0]
    assert not made.mark.exists()
    # On this command line it counts; the model is none of the capture, which is found out then.
    with suppress(gs.GradsiftError):
        COMMANDS[command](run, {"trust_remote_code": True})
    assert made.mark.exists()


def test_a_file_of_settings_does_not_say_whether_code_runs(theirs, tmp_path, log):
    from gradsift.config_files import resolve

    run, made = theirs
    out = str(tmp_path / "new")
    for given, expected in (({}, False), ({"trust_remote_code": True}, True)):
        assert resolve({"out": out, **given}, run / "config.yaml").trust_remote_code is expected
    assert len([line for line in log if "asks for code" in line]) == 1
    trainer = tmp_path / "axolotl.yaml"
    trainer.write_text("base_model: m\nsequence_len: 8\ntrust_remote_code: true\n")
    assert not resolve({"out": out, "data": "d"}, None, trainer).trust_remote_code
    assert not made.mark.exists()


def test_what_is_named_is_shown_before_it_is_used(world, tmp_path, log):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    gs.train(run, arm="full", epochs=1)
    shown = next(at for at, line in enumerate(log) if str(world / "data.jsonl") in line)
    assert f"model '{world / 'model'}' (a folder here)" in log[shown]
    assert shown == 0


def test_a_checkpoint_runs_nothing(world, tmp_path, monkeypatch):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    made = Attack(tmp_path / "model")
    with monkeypatch.context() as patched:
        patched.setattr(training_runs, "write_json", die)
        with pytest.raises(Killed):
            gs.train(run, arm="full", epochs=1, save_steps=2)
    *_, checkpoint = sorted(run.glob("arms/**/checkpoint-*"))
    made.folder = checkpoint
    files = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt")
    for file in (*files, "pytorch_model.bin", "adapter_model.bin"):
        made.pickle(file)
    with suppress(Exception):  # A line in English is the business of others.
        gs.train(run, arm="full", epochs=1, save_steps=2)
    assert not made.mark.exists()


REPORTS = ("tensorboard", "wandb", "comet", "csv_monitor", "flops_profiler")


@pytest.mark.parametrize("in_a_file", [True, False])
@pytest.mark.parametrize("name", REPORTS)
def test_settings_write_nowhere_else(tmp_path, name, in_a_file, monkeypatch):
    monkeypatch.setattr(checks, "_require_packages", lambda _: None)
    said = {name: {"enabled": True, "output_path": str(tmp_path / "else")}}
    if in_a_file:
        (tmp_path / "ds.json").write_text(json.dumps(said))
    sft = {"deepspeed": str(tmp_path / "ds.json") if in_a_file else said}
    with pytest.raises(gs.GradsiftError, match=f"deepspeed: {name}: nothing is sent"):
        checks.require_values(sft)


SAID = (
    {"logging_dir": "/x"},
    {"output_dir": "/x"},
    {"report_to": "os.system"},
    {"push_to_hub": True},
    {"trust_remote_code": True},
    {"model_init_kwargs": {"trust_remote_code": True}},
    {"resume_from_checkpoint": "/x"},
    {"dataset_kwargs": {"x": 1}},
    {"optim": "os.system"},
    {"torch_compile": True, "torch_compile_backend": "os.system"},
    {"lr_scheduler_type": "os.system"},
    {"accelerator_config": {"x": "y"}},
)


@pytest.mark.parametrize("sft", SAID, ids=lambda one: next(reversed(one)))
def test_settings_name_no_code_and_no_places(sft):
    with pytest.raises(gs.GradsiftError):
        require_settings(TrainerSettings(sft, None, 0))
