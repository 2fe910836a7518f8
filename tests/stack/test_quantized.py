"""Quantised weights: exact through the same weights, or refused by name before anything is loaded.

Needs bitsandbytes (the extra `quantized`); torchao and quanto where they are installed.
"""

import json

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import gradsift as gs
from adapted import (
    INSTANCES,
    gradients_at,
    gradients_at_outputs,
    recorded,
    trained,
    worst_error,
)
from gradsift.config_files import resolve
from gradsift.gradients.sketch import SketchSpec
from gradsift.training import quantized, self_check
from gradsift.training.finetune import fine_tune, load_fine_tuned
from gradsift.training.model import find_model, load_model
from gradsift.training.self_check import first_exact_method
from gradsift.training.settings.trainer import TrainerSettings
from gradsift.training.trainer import RecordingSFTTrainer
from oracle import relative_error, statistics_of
from test_cli import invoke
from tiny import save_tiny, tiny_llama, tiny_tokenizer

bnb = pytest.importorskip("bitsandbytes")

FLOAT32 = {"bnb_4bit_compute_dtype": torch.float32}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **FLOAT32}
INT8 = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
WEIGHTS = {
    "nf4": NF4,
    "nf4, double quantisation": {**NF4, "bnb_4bit_use_double_quant": True},
    "fp4": {**NF4, "bnb_4bit_quant_type": "fp4"},
    "int8": INT8,
}
# In evaluation mode LLM.int8 rounds a layer's input to 255 steps: a last bit that differs between a
# batch and a row alone may move an entry by one of them.
TOLERANCE = {True: 1e-5, False: 2e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {tied: save_tiny(folder / str(tied), tied=tied) for tied in (True, False)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def loaded(folder, **options):
    config = BitsAndBytesConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    # Otherwise bitsandbytes rounds the weights again where it evaluates on a CPU.
    return model.train()


def with_lora(model):
    return get_peft_model(
        model, LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )


MODES = [*((name, True) for name in WEIGHTS), ("int8", False)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "training"), MODES)
def test_a_loop_of_ones_own(tmp_path, folders, name, training, tied):
    """In evaluation mode too: there LLM.int8 rounds its inputs, on a CPU as on an accelerator."""
    base = loaded(folders[tied], **WEIGHTS[name])
    assert quantized.quantization_of(base.model.layers[0].mlp.up_proj) == f"{name} (bitsandbytes)"
    table, head = base.model.embed_tokens, base.lm_head
    model = trained(with_lora(base).train(training), lr=0.01)
    seen = recorded(model, tmp_path)
    assert seen.check.warning == ""

    def truth(*row):
        return gradients_at(model, table, head, *row)

    assert worst_error(seen.store, truth) < TOLERANCE[training]


def error_of_a_step(trainer, recorder, truth_of):
    rows = [0, 1, 2]
    records = trainer.dry_run_step(rows, recorder).read()
    errors = []
    for row, record in zip(rows, records, strict=True):
        truth, loss = truth_of(INSTANCES[row].input_ids, INSTANCES[row].labels)
        errors.append(relative_error(record.loss, loss, 0))
        for layer, gradient in truth.items():
            want = statistics_of(gradient)["l2_norm"]
            errors.append(relative_error(getattr(record, layer).values_S[5], want, 0))
    return max(errors)


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_our_trainer(tmp_path, folders, load_in, checkpointing):
    trainer = trainer_for(tmp_path, folders[False], load_in, gradient_checkpointing=checkpointing)
    base = trainer.model.get_base_model()
    assert base.is_quantized
    trained_ones = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained_ones} == {torch.float32}
    assert {p.dtype for n, p in base.named_parameters() if "norm" in n} == {torch.float32}
    recorder, result = first_exact_method(trainer, SketchSpec(64, 0))
    assert result.method == "fused"
    before = [p.clone() for p in base.parameters() if not p.requires_grad]
    trainer.train()
    after = [p for p in base.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert max(p.abs().max() for n, p in base.named_parameters() if "lora_B" in n) > 0.01

    def truth(*row):
        return gradients_at(trainer.model, base.model.embed_tokens, base.lm_head, *row)

    assert error_of_a_step(trainer, recorder, truth) < 1e-5


def trainer_for(tmp_path, folder, load_in, **sft):
    settings = {"per_device_train_batch_size": 4, "learning_rate": 0.02, **sft}
    settings = TrainerSettings(settings, {"r": 2, "lora_alpha": 8}, 0)
    model = load_model(find_model(folder, load_in=load_in))
    return RecordingSFTTrainer(model, tiny_tokenizer(), INSTANCES, settings, tmp_path)


def test_4bit_is_that_of_qlora(folders):
    model = load_model(find_model(folders[True], load_in="4bit"))
    said = model.config.quantization_config
    # Its columns of outliers would make rows influence each other.
    assert quantized.quantization_for("8bit").llm_int8_threshold == pytest.approx(0)
    assert (said.bnb_4bit_quant_type, said.bnb_4bit_use_double_quant) == ("nf4", True)
    on_cpu = not torch.accelerator.is_available()
    assert said.bnb_4bit_compute_dtype == (torch.float32 if on_cpu else torch.bfloat16)
    assert quantized.weights_of(model) == "nf4, double quantisation (bitsandbytes)"
    assert quantized.n_parameters(model) == sum(p.numel() for p in tiny_llama().parameters())


QUANTISED_HEADS = {"nf4": {**NF4, "llm_int8_skip_modules": []},
                   "int8": {**INT8, "llm_int8_skip_modules": []}}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED_HEADS)
def test_a_quantised_head(tmp_path, folders, name):
    base = loaded(folders[False], **QUANTISED_HEADS[name]).train(name == "nf4")
    assert type(base.lm_head.weight).__name__ in ("Params4bit", "Int8Params")
    model = trained(with_lora(base), lr=0.01)
    seen = recorded(model, tmp_path)
    assert seen.check.method == ("hidden" if name == "nf4" else "hooked")

    def truth(*row):
        return gradients_at_outputs(model, base.model.embed_tokens, base.lm_head, *row)

    assert worst_error(seen.store, truth) < TOLERANCE[name == "nf4"]
    if name == "nf4":  # A plain layer of the same numbers is the same head.
        plain = torch.nn.Linear(32, 262, bias=False)
        weight = bnb.functional.dequantize_4bit(
            base.lm_head.weight, base.lm_head.weight.quant_state
        )
        plain.weight.data = weight
        base.lm_head = plain

        def truth_of_plain(*row):
            return gradients_at(model, base.model.embed_tokens, plain, *row)

        assert worst_error(seen.store, truth_of_plain) < 1e-5


@pytest.mark.parametrize("name", QUANTISED_HEADS)
def test_a_quantised_head_in_our_trainer(tmp_path, folders, name):
    folder = tmp_path / "saved"
    loaded(folders[False], **QUANTISED_HEADS[name]).save_pretrained(folder)
    trainer = trainer_for(tmp_path / "work", str(folder), None)
    recorder, result = first_exact_method(trainer, SketchSpec(64, 0))
    # LLM.int8 rounds the head's input, too: nobody may multiply by its weight in its place.
    assert result.method == ("fused" if name == "nf4" else "hooked")
    trainer.train()
    base = trainer.model.get_base_model()

    def truth(*row):
        return gradients_at_outputs(trainer.model, base.model.embed_tokens, base.lm_head, *row)

    assert error_of_a_step(trainer, recorder, truth) < 1e-5


def test_a_quantised_head_is_dequantised_once_a_step(tmp_path, folders, monkeypatch):
    folder = tmp_path / "saved"
    loaded(folders[False], **QUANTISED_HEADS["nf4"]).save_pretrained(folder)
    trainer = trainer_for(tmp_path / "work", str(folder), None)
    recorder, _ = first_exact_method(trainer, SketchSpec(64, 0))
    head, plain = trainer.model.get_base_model().lm_head, bnb.functional.dequantize_4bit
    calls = []

    def counted(weight, state):
        calls.append(weight.data_ptr() == head.weight.data_ptr())
        return plain(weight, state)

    # The model's own forward passes of other layers do it by another name.
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", counted)
    monkeypatch.setattr(bnb.autograd._functions.F, "dequantize_4bit", counted)
    trainer.dry_run_step(list(range(4)), recorder)
    assert calls.count(True) == 1


def embedding_by_bitsandbytes(kind, **options):
    def quantise(model):
        embedding = kind(262, 32, **options)
        embedding.load_state_dict(model.model.embed_tokens.state_dict())
        model.model.embed_tokens = embedding.to("cpu")

    return quantise


def embedding_by_torchao(model):
    torchao = pytest.importorskip("torchao.quantization")
    config = torchao.IntxWeightOnlyConfig(torch.int8, granularity=torchao.PerAxis(0))
    torchao.quantize_(
        model, config, filter_fn=lambda module, _: isinstance(module, torch.nn.Embedding)
    )


QUANTISED_EMBEDDINGS = {
    "nf4": embedding_by_bitsandbytes(bnb.nn.Embedding4bit, quant_type="nf4"),
    "int8": embedding_by_bitsandbytes(bnb.nn.Embedding8bit),
    "torchao": embedding_by_torchao,
}


@pytest.mark.parametrize("name", QUANTISED_EMBEDDINGS)
def test_a_quantised_embedding(tmp_path, name):
    base = tiny_llama(tied=False)
    QUANTISED_EMBEDDINGS[name](base)
    assert quantized.quantization_of(base.model.embed_tokens) is not None
    model = trained(with_lora(base), lr=0.01)
    seen = recorded(model, tmp_path)

    def truth(*row):
        return gradients_at_outputs(model, base.model.embed_tokens, base.lm_head, *row)

    assert worst_error(seen.store, truth) < 1e-5


def test_a_weight_that_is_not_offered_as_numbers_is_refused_by_name(tmp_path):
    class Packed(torch.nn.Linear):
        """As gptq and awq do it: no weight, but packed integers."""

        def __init__(self):
            super().__init__(32, 262, bias=False)
            del self.weight
            self.qweight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int32), False)

    model = tiny_llama(tied=False)
    model.lm_head = Packed()
    with pytest.raises(ValueError, match=r"Packed.*Leave lm_head and the embedding out"):
        gs.record(model, out=tmp_path)


def test_outliers_couple_rows_and_that_is_said(tmp_path, folders):
    """Negative control: with a threshold the rows are a batch's, and off by more than rounding.

    On a CPU bitsandbytes takes LLM.int8's own product only in evaluation mode.
    """
    model = loaded(folders[False], **{**INT8, "llm_int8_threshold": 2.0})
    table, head = model.model.embed_tokens, model.lm_head
    model = with_lora(model).eval()
    with pytest.warns(UserWarning, match=r"llm_int8_threshold=2 .*llm_int8_threshold=0\.0"):
        seen = recorded(model, tmp_path)
    assert "rows influence each other" in seen.check.warning

    def truth(*row):
        return gradients_at(model, table, head, *row)

    assert 5e-4 < worst_error(seen.store, truth) < 0.1


def test_an_arm_is_examined_through_the_very_weights_it_was_trained_over(tmp_path, folders):
    """Merging would round them anew; evaluating on a CPU must not, either."""
    source = find_model(folders[False], load_in="4bit")
    settings = TrainerSettings(
        {"learning_rate": 0.02, "per_device_train_batch_size": 4}, {"r": 2}, 0
    )
    tuned = fine_tune(
        load_model(source),
        tiny_tokenizer(),
        INSTANCES,
        settings,
        tmp_path / "work",
        save_to=tmp_path / "kept",
        label="arm",
    )
    assert quantized.weights_of(tuned.model).startswith("nf4")
    again = load_fine_tuned(tmp_path / "kept", source, settings)
    plain = load_model(source)
    tokens = torch.tensor([INSTANCES[0].input_ids])
    with torch.no_grad():
        got, loaded_again, untrained = (
            model(input_ids=tokens).logits for model in (tuned.model, again, plain)
        )
    assert torch.equal(got, loaded_again)
    unmerged = PeftModel.from_pretrained(load_model(source), str(tmp_path / "kept"))
    with torch.no_grad():
        assert torch.equal(got, unmerged(input_ids=tokens).logits)
    assert (got - untrained).abs().max() > 0.01
    with torch.no_grad():
        assert torch.equal(got, tuned.model.train()(input_ids=tokens).logits)


# --- what is asked for, and what is refused


def write_pool(path, n=8):
    rows = [{"prompt": f"what is {i}?", "completion": f"it is {i * i}, as is known"}
            for i in range(n)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SFT = {"per_device_train_batch_size": 2}


def test_a_run_with_load_in(tmp_path, folders):
    from gradsift.commands.run import run_stages

    pool = write_pool(tmp_path / "data.jsonl")
    given = {"data": str(pool), "model": folders[True], "out": str(tmp_path / "run"), "sft": SFT}
    config = resolve({**given, "lora": True, "load_in": "4bit", "budget": "4"}, None)
    run_stages(config)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["identity"]["load_in"] == "4bit"
    assert manifest["about"]["weights"] == "nf4, double quantisation (bitsandbytes)"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["load_in"] == "4bit"
    with pytest.raises(ValueError, match="load_in"):
        run_stages(resolve({**given, "lora": True, "load_in": "8bit", "budget": "4"}, None))
    # An arm starts from the same weights.
    trained_arm = gs.train(tmp_path / "run", arm="random", budget=4, epochs=1)
    assert trained_arm.n_rows == 4
    made_with = json.loads((trained_arm.folder / "gradsift.json").read_text())
    assert made_with["identity"]["load_in"] == "4bit"
    test = write_pool(tmp_path / "test.jsonl", 6)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    quick = {"budgets": [4], "seeds": 2, "epochs": 1, "max_new_tokens": 2}
    options = {"arms": ["base", "random"], "general": [str(tmp_path / "text.txt")], **quick}
    compared = gs.compare(tmp_path / "run", test=str(test), **options)
    assert set(compared.summary()["arms"]) == {"base", "random 4"}
    with pytest.raises(ValueError, match=r"load_in: 4bit.*add `lora`"):
        gs.train(tmp_path / "run", arm="random", budget=4, epochs=1, lora=False)


def test_stores_without_it_keep_their_identity(tmp_path, folders):
    pool = gs.load_pool(write_pool(tmp_path / "data.jsonl"))
    store = gs.capture(folders[True], pool, out=tmp_path / "run", lora={"r": 2}, sft=SFT)
    assert "load_in" not in store.manifest.identity
    assert store.manifest.about["weights"] == "float32"


def test_the_command_line(capsys, folders):
    options = ["--load-in", "4bit", "--sft", "per_device_train_batch_size=2"]
    code, output, _ = invoke(capsys, "check", folders[True], "--lora", *options)
    assert code == 0
    assert "weights: nf4, double quantisation (bitsandbytes), head float32" in output
    given = ("x.jsonl", "--model", folders[True], "--out", "x", *options)
    code, _, errors = invoke(capsys, "capture", *given)
    assert code != 0
    assert "add --lora" in errors


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_saved_checkpoint(tmp_path, folders, name):
    saved = str(tmp_path / "saved")
    model = loaded(folders[True], **WEIGHTS[name])
    model.save_pretrained(saved)
    tiny_tokenizer().save_pretrained(saved)
    with pytest.raises(ValueError, match=r"has weights quantised by bitsandbytes: .*add `lora`"):
        gs.check(saved)
    with pytest.raises(ValueError, match=r"quantised by bitsandbytes already: leave `load_in` out"):
        gs.check(saved, load_in="4bit", lora=True)
    found = gs.check(saved, lora={"r": 2})
    assert found.check.worst_relative_error < 1e-3
    assert found.weights == f"{name} (bitsandbytes)"
    text = found.text()
    assert f"weights: {name} (bitsandbytes), head float32" in text
    assert "trained: LoRA on 7 kinds of layers, 0.0 M of 0 M parameters" in text
    assert "gradients at the embedding and the LM head, as if both were trained" in text


def test_a_saved_checkpoint_with_outliers_is_recorded_with_a_warning(
    tmp_path, folders, monkeypatch
):
    saved = str(tmp_path / "saved")
    loaded(folders[True], load_in_8bit=True).save_pretrained(saved)
    tiny_tokenizer().save_pretrained(saved)
    # As on an accelerator; on a CPU, training does without outliers.
    reason = "bitsandbytes int8 with llm_int8_threshold=6"
    assert quantized.coupling_of(load_model(find_model(saved))).startswith(reason)
    assert gs.check(saved, lora={"r": 2}).check.warning == ""
    monkeypatch.setattr(self_check, "coupling_of", lambda model: reason)
    found = gs.check(saved, lora={"r": 2})
    assert f"warning: {reason}" in found.text()
    assert found.check.tolerance == pytest.approx(0.1)


# --- other libraries, in a loop of one's own


def by_torchao(model, quantises_head):
    torchao = pytest.importorskip("torchao.quantization")

    def chosen(module, name):
        return isinstance(module, torch.nn.Linear) and (quantises_head or name != "lm_head")

    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=chosen)
    return model


def by_quanto(model, quantises_head):
    quanto = pytest.importorskip("optimum.quanto")
    exclude = None if quantises_head else "lm_head"
    quanto.quantize(model, weights=quanto.qint8, exclude=exclude)
    quanto.freeze(model)
    return model


@pytest.mark.parametrize("quantises_head", [False, True], ids=["head float32", "head too"])
@pytest.mark.parametrize("quantise", [by_torchao, by_quanto], ids=["torchao", "quanto"])
def test_weights_of_other_libraries(tmp_path, quantise, quantises_head):
    base = quantise(tiny_llama(tied=False).requires_grad_(False), quantises_head)
    assert quantized.quantization_of(base.model.layers[0].mlp.up_proj) is not None
    assert (quantized.quantization_of(base.lm_head) is not None) == quantises_head
    targets = ["q_proj", "down_proj"]
    model = base
    if quantise is by_torchao:
        model = get_peft_model(base, LoraConfig(r=2, target_modules=targets))
        trained(model, lr=0.01)
    else:
        base.model.norm.requires_grad_(True)
    seen = recorded(model, tmp_path)
    assert seen.check.method == ("hooked" if quantises_head else "hidden")

    def truth(*row):
        return gradients_at_outputs(model, base.model.embed_tokens, base.lm_head, *row)

    assert worst_error(seen.store, truth) < 1e-5
