"""Adapters in a loop of one's own and in our trainer: exact also when they add something.

Recorded is the gradient of the base weights, as if they were trained. The adapters are trained
for some steps first: before, they add nothing, and leaving them out would not be seen.
"""

import json

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora import Linear
from transformers import T5Config, T5ForConditionalGeneration
from trl import SFTConfig, SFTTrainer

import gradsift as gs
from adapted import (
    INSTANCES,
    gradients_at,
    gradients_at_outputs,
    in_float64,
    recorded,
    trained,
    worst_error,
)
from gradsift.gradients.sketch import SketchSpec
from gradsift.training import layers as tracking
from gradsift.training.batches import as_dataset
from gradsift.training.finetune import fine_tune
from gradsift.training.layers import track
from gradsift.training.model import find_model, load_model
from gradsift.training.self_check import METHODS, first_exact_method, recorder_for
from gradsift.training.settings.lora import lora_config
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer
from oracle import relative_error, statistics_of
from test_cli import invoke
from tiny import save_tiny, tiny_llama, tiny_tokenizer

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def lora(**options):
    options = {"r": 2, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **options}
    return LoraConfig(**options)


LAYERS_ALONE = {
    "LoRA": lora(),
    "rsLoRA": lora(use_rslora=True),
    "DoRA": lora(use_dora=True),
    "PiSSA": lora(init_lora_weights="pissa"),
    "OLoRA": lora(init_lora_weights="olora"),
    "IA3": IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "VeRA": VeraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", LAYERS_ALONE)
def test_adapters_between_embedding_and_head(tmp_path, name, tied):
    base = tiny_llama(tied=tied)
    table, head = base.model.embed_tokens, base.lm_head
    model = trained(get_peft_model(base, LAYERS_ALONE[name]), lr=0.01)
    seen = recorded(model, tmp_path)
    assert (seen.check.method, seen.check.warning) == ("hidden", "")

    def truth(input_ids, labels):
        return gradients_at(model, table, head, input_ids, labels)

    assert worst_error(seen.store, truth) < 5e-5


ON_HEAD = ["lm_head"]
ON_TABLE = ["embed_tokens"]
TOKENS = {"embed_tokens": [7, 100, 101, 200]}
OVER_THE_LAYERS = {
    "LoRA on the head": lora(target_modules=[*ALL, *ON_HEAD], lora_dropout=0.0),
    "rsLoRA on the head": lora(target_modules=ON_HEAD, use_rslora=True),
    "LoRA on the embedding": lora(target_modules=[*ALL, *ON_TABLE]),
    "LoRA on both": lora(target_modules=[*ALL, *ON_HEAD, *ON_TABLE]),
    "DoRA on the embedding": lora(target_modules=ON_TABLE, use_dora=True),
    "head saved": lora(modules_to_save=ON_HEAD),
    "embedding saved": lora(modules_to_save=ON_TABLE),
    "both saved": lora(modules_to_save=[*ON_TABLE, *ON_HEAD]),
    "tokens": lora(trainable_token_indices=TOKENS),
    "tokens, head saved": lora(trainable_token_indices=TOKENS, modules_to_save=ON_HEAD),
}


def plain_layers(model):
    """The layers whose weights are used, whatever wraps them; written without the code's help."""

    def inner(module):
        if hasattr(module, "modules_to_save"):
            return module.modules_to_save["default"]
        return module.base_layer if hasattr(module, "base_layer") else module

    base = model.get_base_model()
    return inner(base.model.embed_tokens), inner(base.lm_head)


def truth_for(model, name):
    if "tokens" not in name:
        return lambda *row: gradients_at(model, *plain_layers(model), *row)
    # The table that is used is put together at each call; merged, it is a plain one.
    merged = in_float64(model).merge_and_unload()
    return lambda *row: gradients_at(merged, merged.model.embed_tokens, merged.lm_head, *row)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", OVER_THE_LAYERS)
def test_adapters_over_embedding_and_head(tmp_path, name, tied):
    if tied and name == "tokens, head saved":
        pytest.skip("peft refuses it")
    model = get_peft_model(tiny_llama(tied=tied), OVER_THE_LAYERS[name])
    model = trained(model)
    if name == "LoRA on the head":
        assert model.get_base_model().lm_head.lora_B["default"].weight.abs().max() > 0.05
    seen = recorded(model, tmp_path)
    assert worst_error(seen.store, truth_for(in_float64(model), name)) < 5e-5
    # What the model's own module gives at its output says the same, where it only adds.
    base = model.get_base_model()
    if "DoRA" not in name and "saved" not in name:
        same = in_float64(base)
        table = same.model.embed_tokens
        if not hasattr(table, "padding_idx"):
            table.padding_idx = 0

        def truth(*row):
            return gradients_at_outputs(same, table, same.lm_head, *row)

        assert worst_error(seen.store, truth) < 5e-5


def trainer_for(tmp_path, config, *, tied=False, **sft):
    settings = {"per_device_train_batch_size": 4, "learning_rate": 0.05, **sft}
    model = tiny_llama(tied=tied)
    settings = TrainerSettings(settings, config, 0)
    return RecordingSFTTrainer(model, tiny_tokenizer(), INSTANCES, settings, tmp_path)


def with_an_adapted_head(trainer):
    """trl refuses one at the start; here it comes later."""
    base = trainer.model.get_base_model()
    base.lm_head = Linear(base.lm_head, "default", config=lora(), r=2, lora_alpha=8)
    return trainer


SKETCH = SketchSpec(64, 0)


def error_of_a_step(trainer, recorder):
    rows = [0, 1, 2]
    records = trainer.dry_run_step(rows, recorder).read()
    errors = []
    for row, record in zip(rows, records, strict=True):
        item = INSTANCES[row]
        layers = plain_layers(trainer.model)
        truth, _ = gradients_at(trainer.model, *layers, item.input_ids, item.labels)
        for layer, gradient in truth.items():
            want = statistics_of(gradient)["l2_norm"]
            errors.append(relative_error(getattr(record, layer).values_S[5], want, 0))
    return max(errors)


@pytest.mark.parametrize("tied", [True, False])
def test_our_trainer_leaves_no_adapter_of_the_head_out(tmp_path, tied):
    trainer = with_an_adapted_head(trainer_for(tmp_path, {"r": 2}, tied=tied))
    recorder, result = first_exact_method(trainer, SKETCH)
    assert result.method == "hooked"
    assert "would be left out" in result.tried["fused"]
    assert "would be left out" in result.tried["fused-intercepted"]
    trainer.train()
    assert trainer.model.get_base_model().lm_head.lora_B["default"].weight.abs().max() > 0.05
    assert error_of_a_step(trainer, recorder) < 1e-4


def test_the_fused_head_would_leave_it_out_and_the_self_check_would_not_see_it(
    tmp_path, monkeypatch
):
    """Negative control of the test above: that is why ways are refused before they are checked."""
    trainer = with_an_adapted_head(trainer_for(tmp_path, {"r": 2}))
    monkeypatch.setattr(tracking, "require_fusable", lambda head: None)
    recorder, result = first_exact_method(trainer, SKETCH)
    assert result.method == "fused"
    # Some steps of the model's own loss, so that the adapter adds something.
    trained(trainer.model)
    assert error_of_a_step(trainer, recorder) > 0.01


def test_the_adapter_of_a_head_is_refused_before_a_model_is_loaded():
    with pytest.raises(ValueError, match=r"target_modules has 'lm_head'.*modules_to_save"):
        lora_config({"target_modules": [*ALL, *ON_HEAD]})


SAVED = {
    "head": {"modules_to_save": ON_HEAD},
    "embedding": {"modules_to_save": ON_TABLE},
    "both": {"modules_to_save": [*ON_TABLE, *ON_HEAD]},
    "LoRA on the embedding": {"target_modules": [*ALL, *ON_TABLE]},
}


@pytest.mark.parametrize("name", SAVED)
def test_what_leaves_the_head_a_plain_layer_stays_fused(tmp_path, name):
    trainer = trainer_for(tmp_path, {"r": 2, **SAVED[name]})
    recorder, result = first_exact_method(trainer, SKETCH)
    assert result.method == "fused"
    before = [layer.weight.clone() for layer in plain_layers(trainer.model)]
    trainer.train()
    moved = [
        not torch.equal(was, layer.weight)
        for was, layer in zip(before, plain_layers(trainer.model), strict=True)
    ]
    assert moved == [name in ("embedding", "both"), name in ("head", "both")]
    assert error_of_a_step(trainer, recorder) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_trainable_tokens_in_our_trainer(tmp_path, tied):
    trainer = trainer_for(tmp_path, {"r": 2, "trainable_token_indices": TOKENS}, tied=tied)
    # Also while nobody records, such as for an arm.
    assert (trainer.fused is None) == tied
    recorder, result = first_exact_method(trainer, SKETCH)
    assert result.method == ("hooked" if tied else "fused")
    trainer.train()
    records = trainer.dry_run_step([0, 1, 2], recorder).read()
    plain = trainer.model.merge_and_unload()
    for row, record in enumerate(records):
        item = INSTANCES[row]
        layers = plain.model.embed_tokens, plain.lm_head
        truth, _ = gradients_at(plain, *layers, item.input_ids, item.labels)
        for layer, gradient in truth.items():
            want = statistics_of(gradient)["l2_norm"]
            assert relative_error(getattr(record, layer).values_S[5], want, 0) < 1e-4


def test_ways_that_do_not_fit_are_refused_by_name(tmp_path):
    trainer = with_an_adapted_head(trainer_for(tmp_path, {"r": 2}))
    for method in METHODS:
        if method != "hooked":
            with pytest.raises(ValueError, match=r"LoRA on lm_head|wrapped by an adapter"):
                recorder_for(trainer, method, SKETCH)


@pytest.mark.parametrize("resize", [262 + 64, 262 - 6])
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(tmp_path, tied, resize):
    model = tiny_llama(tied=tied)
    torch.manual_seed(0)
    model.resize_token_embeddings(resize)
    for row in INSTANCES:
        assert max(row.input_ids) < 262
    if resize < 262:
        model = tiny_llama(tied=tied, vocab_size=300)
        model.resize_token_embeddings(262)
    seen = recorded(model, tmp_path)
    truth = in_float64(model)

    def at_weights(*row):
        return gradients_at(truth, truth.model.embed_tokens, truth.lm_head, *row)

    assert worst_error(seen.store, at_weights) < 5e-5


def test_prompt_tuning_is_refused_plainly(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(tiny_llama(), config)
    with pytest.raises(ValueError, match=r"prompt tuning puts virtual tokens before"):
        gs.record(model, out=tmp_path)


def test_an_encoder_decoder_model_is_refused_plainly(tmp_path):
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=262)
    model = T5ForConditionalGeneration(config)
    message = "an encoder-decoder model: gradsift records causal LMs"
    with pytest.raises(ValueError, match=message):
        gs.record(model, out=tmp_path / "run")
    model.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"encoder-decoder model \(t5\): gradsift records causal"):
        gs.check(str(tmp_path / "t5"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            IA3Config(
                task_type="CAUSAL_LM", target_modules=["lm_head"], feedforward_modules=["lm_head"]
            ),
            r"adapted by ia3.*Leave lm_head out of peft's target_modules",
        ),
        (lora(target_modules=ON_HEAD, use_dora=True), r"use_dora.*Leave lm_head out"),
    ],
    ids=["IA3", "DoRA"],
)
def test_adapters_that_multiply_at_the_head_are_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        track(get_peft_model(tiny_llama(tied=False), config))


def test_a_loop_that_multiplies_by_an_adapted_heads_weight_itself_is_refused(tmp_path):
    """trl refuses such a model at the start, too; here the adapter comes after that."""
    trainer = SFTTrainer(
        model=tiny_llama(tied=False),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=4,
            max_length=None,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=as_dataset(INSTANCES),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    with (
        pytest.raises(ValueError, match=r"LoRA on lm_head.*trl's fused head"),
        gs.record(with_an_adapted_head(trainer).model, out=tmp_path / "run"),
    ):
        trainer.train()


TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""


def examined(model, folder):
    """Scores of a task, and logits before and after it."""
    from gradsift.evaluation.benchmarks import load_tasks, score_tasks

    rows = [{"question": f"what is {i}?", "choices": [" it is", " no"]} for i in range(3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(TASK.replace("TEST", str(folder / "test.jsonl")))
    tokens = torch.tensor([INSTANCES[0].input_ids])
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        tasks = load_tasks([], [folder / "mine.yaml"])
        found = score_tasks(model, tiny_tokenizer(), tasks)["mine"]
        return found, before, model(input_ids=tokens).logits


TRAINED_HEADS = [
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
    {"trainable_token_indices": [5, 6]},
]


def tuned_arm(source, adapters, folder):
    settings = TrainerSettings({"learning_rate": 0.05}, {"r": 2, **adapters}, 0)
    return fine_tune(
        load_model(source),
        tiny_tokenizer(),
        INSTANCES,
        settings,
        folder / "work",
        label="arm",
    ).model


@pytest.mark.parametrize("adapters", TRAINED_HEADS, ids=str)
@pytest.mark.parametrize("load_in", [None, "4bit", "8bit"])
def test_an_arm_with_a_trained_head_is_examined_as_it_was_trained(tmp_path, adapters, load_in):
    """lm-eval ties the weights of every model again: a head of its own would be overwritten."""
    if load_in:
        pytest.importorskip("bitsandbytes")
    source = find_model(save_tiny(tmp_path / "model", tied=True), load_in=load_in)
    model = tuned_arm(source, adapters, tmp_path)
    found, before, after = examined(model, tmp_path)
    assert len(found.scores) == 3
    assert torch.equal(before, after)
    assert "tie_weights" not in vars(model)


# --- names and values that peft would leave out, or stumble over

UNFITTING = [
    ({"modules_to_save": ["wte", "lm_headd"]}, "none .* lm_headd or wte; .*lm_head"),
    ({"target_modules": ["q_proj", "nope_proj"]}, r"target_modules: none .* is nope_proj; close"),
    ({"exclude_modules": ["kproj"]}, r"exclude_modules: none .* is kproj; close to it: k_proj"),
    ({"exclude_modules": "x.*"}, r"exclude_modules: none of the model's modules is x"),
    ({"rank_pattern": {"qq": 4}}, r"rank_pattern: none of the model's modules is qq"),
    ({"alpha_pattern": {"embed_tokens": 4}}, r"alpha_pattern: none of the adapted modules is emb"),
    ({"alpha_pattern": {"(": 4}}, "alpha_pattern: not a regular expression"),
    ({"target_parameters": ["mlp.nothing"]}, "none .* is mlp.nothing; .*weight"),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 9]}, "to_transform: none .* 9"),
    ({"target_modules": "nothing.*"}, r"target_modules: 'nothing\.\*'\): peft refuses: "),
    ({"trainable_token_indices": [99999]}, "has 99999, expected ids of tokens, from 0 to 261"),
    ({"trainable_token_indices": [-1]}, "has -1, expected ids"),
    ({"trainable_token_indices": {"embd": [1]}}, "trainable_token_indices: none .* is embd"),
    ({"init_lora_weights": "foo"}, r"init_lora_weights: 'foo'\): peft refuses"),
    ({"r": 0}, r"r: 0\): peft refuses"),
    ({"bias": "none", "r": -3}, r"peft refuses"),
]  # fmt: skip


@pytest.mark.parametrize(("adapters", "message"), UNFITTING, ids=str)
def test_what_fits_no_module_is_refused_by_name_before_training(tmp_path, adapters, message):
    source = find_model(save_tiny(tmp_path / "model", tied=True))
    with pytest.raises(ValueError, match=message) as error:
        gs.check(source.name, lora={"r": 2, **adapters})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        tuned_arm(source, adapters, tmp_path)


def test_a_name_alone_is_a_list_of_it(tmp_path):
    model = save_tiny(tmp_path / "model", tied=False)
    alone = gs.check(model, lora={"r": 2, "modules_to_save": "lm_head"})
    listed = gs.check(model, lora={"r": 2, "modules_to_save": ["lm_head"]})
    assert alone.n_trained == listed.n_trained
    without = gs.check(model, lora={"r": 2, "target_modules": ["all-linear"]})
    assert alone.n_trained - without.n_trained == 262 * 32
    assert lora_config({"target_parameters": "a"}).target_parameters == ["a"]


WRONG = [
    ({"peft_type": "PROMPT_TUNING"}, "decides itself: peft_type: adapters are LoRA's"),
    ({"task_type": "SEQ_CLS"}, "task_type: causal language models only"),
    ({"inference_mode": True, "revision": "x"}, "inference_mode: the adapters are trained; revis"),
    ({"r": "8"}, "lora setting r is '8', expected a valid integer"),
    ({"r": True}, "lora setting r is True, expected a valid integer"),
    ({"bias": "foo"}, "lora setting bias is 'foo', expected 'none', 'all' or 'lora_only'"),
    ({"trainable_token_indices": "foo"}, "trainable_token_indices is 'foo', expected a valid list"),
    ({"rank_pattern": "foo"}, "rank_pattern is 'foo', expected a valid dictionary"),
    ({"modules_to_save": [1]}, r"modules_to_save is \[1\], expected a valid string"),
    ({"use_dora": "yes"}, "use_dora is 'yes', expected a valid boolean"),
    ({"layers_pattern": ["h"]}, "layers_pattern needs target_modules as a list"),
    ({"eva_config": 3}, "eva_config: such adapters are started from data"),
]


@pytest.mark.parametrize(("adapters", "message"), WRONG, ids=str)
def test_values_that_lora_does_not_take_are_refused_before_anything_is_loaded(adapters, message):
    with pytest.raises(ValueError, match=message):
        lora_config(adapters)


def test_what_lora_takes():
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_alpha": 2.5, "bias": "all"}
    config = lora_config({**said, "init_lora_weights": "pissa_niter_4"})
    assert (config.lora_alpha, config.bias) == (2.5, "all")


@pytest.mark.parametrize(
    ("load_in", "adapters", "message"),
    [
        ("8bit", {"use_dora": True}, "use_dora: peft's DoRA does not compute over weights in 8"),
        ("4bit", {"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa'\): peft refuses"),
    ],
)
def test_what_cannot_be_done_over_quantised_weights(tmp_path, load_in, adapters, message):
    pytest.importorskip("bitsandbytes")
    model = save_tiny(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        gs.check(model, load_in=load_in, lora={"r": 2, **adapters})


def test_a_capture_says_what_is_trained_and_how_the_weights_are_held(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    rows = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ours.yaml").write_text(
        "load_in: 4bit\nlora: {r: 4, rank_pattern: {q_proj: 2}, modules_to_save: lm_head,\n"
        "  trainable_token_indices: [5, 6]}\nsft: {per_device_train_batch_size: 2}\n"
    )
    model = save_tiny(tmp_path / "model", tied=False)
    command = [str(tmp_path / "rows.jsonl"), "--model", model, "--config"]
    command += [str(tmp_path / "ours.yaml"), "--out", str(tmp_path / "run")]
    code, _, errors = invoke(capsys, "capture", *command)
    assert code == 0, errors
    # 2 layers: 7 adapters of rank 4 (2 on q_proj), the head, two rows of the table.
    shapes = {"q": (32, 32, 2), "k": (32, 16, 4), "v": (32, 16, 4), "o": (32, 32, 4)}
    shapes |= {"up": (32, 64, 4), "gate": (32, 64, 4), "down": (64, 32, 4)}
    n = 2 * sum(r * (a + b) for a, b, r in shapes.values()) + 262 * 32 + 2 * 32
    said = "LoRA (r 2 and 4) on 7 kinds of layers, 2 tokens of embed_tokens, lm_head whole: "
    line = next(line for line in errors.splitlines() if "training: " in line)
    assert said + f"{n:,} of " in line
    assert line.endswith("; weights nf4, double quantisation (bitsandbytes)")
    about = json.loads((tmp_path / "run/manifest.json").read_text())["about"]
    assert about["training"] in line
    assert about["versions"]["bitsandbytes"]


def test_the_check_takes_the_files_that_a_run_takes(tmp_path, capsys):
    model = save_tiny(tmp_path / "model", tied=False)
    (tmp_path / "ours.yaml").write_text("lora: {r: 3}\n")
    (tmp_path / "theirs.yaml").write_text(
        f"model_name_or_path: {model}\nuse_peft: true\nlora_r: 5\nmax_length: 64\n"
        "dataset_name: a/b\nlearning_rate: 1.0e-3\nlora_target_modules: all-linear\n"
    )
    both = {}
    for file in ("--config", "--trainer-config"):
        name = "ours.yaml" if file == "--config" else "theirs.yaml"
        given = [model] if file == "--config" else []
        code, out, errors = invoke(capsys, "check", *given, file, str(tmp_path / name), "--json")
        assert code == 0, errors
        both[file] = json.loads(out)["n_trained"]
    assert both["--trainer-config"] * 3 == both["--config"] * 5
