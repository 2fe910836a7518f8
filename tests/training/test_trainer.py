"""What is recorded equals autograd on each row alone, and training does not notice."""

import gc
import random
import weakref

import pytest
import torch
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from gradsift.data.tokenization import Instance
from gradsift.gradients.recorder import Recorder
from gradsift.gradients.sketch import SketchSpec
from gradsift.terms import STATISTICS
from gradsift.training.batches import TOKENS, as_dataset
from gradsift.training.layers import track
from gradsift.training.self_check import METHODS, first_exact_method, recorder_for, self_check
from gradsift.training.settings.trainer import TrainerSettings, require_settings
from gradsift.training.trainer import RecordingSFTTrainer
from oracle import gradients_of, relative_error, statistics_of
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

LR = 5e-3


def make_instances(n=16, seed=0):
    rng = random.Random(seed)
    instances = []
    for i in range(n):
        length = rng.randint(4, 40)
        prompt = rng.randint(1, length - 2)
        # The padding token is among them, as where a model pads with a token of its chat template;
        # autograd leaves its row of the embedding table without a gradient.
        ids = [rng.choice([0, rng.randint(6, 261)]) for _ in range(length)]
        instances.append(Instance(f"r{i}", ids, [-100] * prompt + ids[prompt:]))
    return instances


INSTANCES = make_instances()


def trainer_for(tmp_path, *, model=None, lora=None, seed=0, instances=INSTANCES, **sft):
    settings = TrainerSettings({"per_device_train_batch_size": 4, **sft}, lora, seed)
    model = tiny_llama() if model is None else model
    return RecordingSFTTrainer(model, tiny_tokenizer(), instances, settings, tmp_path)


def record_epoch(trainer, method="fused"):
    seen = []
    with recorder_for(trainer, method, SketchSpec(16, 0)) as recorder:
        trainer.record_with(recorder, seen.append)
        trainer.train()
    return {record.index: record for records in seen for record in records.read()}


def assert_rows_match(records, truth_model, tolerance):
    for i, instance in enumerate(INSTANCES):
        gradients, loss = gradients_of(truth_model, instance.input_ids, instance.labels)
        assert relative_error(records[i].loss, loss, 0) < tolerance
        for layer, gradient in gradients.items():
            want = statistics_of(gradient)
            got = dict(zip(STATISTICS, getattr(records[i], layer).values_S, strict=True))
            for name in STATISTICS:
                companion = want["mean_abs"] if name == "mean" else 0
                error = relative_error(got[name], want[name], companion)
                values = f"recorded {float(got[name])}, autograd {float(want[name])}"
                assert error < tolerance, f"row {i} {layer} {name}: {values}"


CONFIGURATIONS = {
    "batch 1": {"per_device_train_batch_size": 1},
    "batch 4": {},
    "batch 8": {"per_device_train_batch_size": 8},
    "other order": {"seed": 7},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "two workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "lora": {"lora": {"r": 2}},
    "lora, checkpointing": {"lora": {"r": 2}, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_records_are_batch_of_one_autograd(tmp_path, name, tied, method):
    """At learning rate 0 every row meets the same weights, whatever its batch."""
    options = {"learning_rate": 0.0, **CONFIGURATIONS[name]}
    records = record_epoch(trainer_for(tmp_path, model=tiny_llama(tied=tied), **options), method)
    assert sorted(records) == list(range(len(INSTANCES)))
    assert_rows_match(records, tiny_llama(tied=tied, dtype=torch.float64), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_in_float64_records_are_exact(tmp_path, method):
    # Llama's norm computes in float32 whatever the weights are; GPT-2's does not.
    model = tiny_gpt2().double()
    records = record_epoch(trainer_for(tmp_path, model=model, learning_rate=0.0), method)
    assert_rows_match(records, tiny_gpt2().double(), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_absolute_positions(tmp_path, method):
    records = record_epoch(trainer_for(tmp_path, model=tiny_gpt2(), learning_rate=0.0), method)
    assert_rows_match(records, tiny_gpt2().double(), 2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_error_norms_are_el2n(tmp_path, method):
    records = record_epoch(trainer_for(tmp_path, learning_rate=0.0), method)
    for i, instance in enumerate(INSTANCES):
        ids = torch.tensor(instance.input_ids)
        logits = tiny_llama(dtype=torch.float64)(input_ids=ids[None]).logits[0, :-1]
        response = torch.tensor(instance.labels[1:]) != -100
        error = logits.softmax(1) - torch.nn.functional.one_hot(ids[1:], 262)
        want = error[response].norm(dim=1).mean()
        assert records[i].el2n == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(("method", "backend"), [("fused", "aot_eager"), ("hooked", "eager")])
def test_a_compiled_model(tmp_path, method, backend):
    options = {"torch_compile": True, "torch_compile_backend": backend, "learning_rate": 0.0}
    records = record_epoch(trainer_for(tmp_path, **options), method)
    assert_rows_match(records, tiny_llama(dtype=torch.float64), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_in_bfloat16(tmp_path, method):
    records = record_epoch(trainer_for(tmp_path, bf16=True, learning_rate=0.0), method)
    for i, instance in enumerate(INSTANCES):
        truth, _ = gradients_of(tiny_llama(), instance.input_ids, instance.labels)
        for layer, gradient in truth.items():
            norm = float(getattr(records[i], layer).values_S[5])
            assert norm == pytest.approx(float(gradient.norm()), rel=0.05)


def train_and_watch(trainer, recording, method="fused"):
    if isinstance(trainer, RecordingSFTTrainer):
        trainer.use_fused_head(method.startswith("fused"))
    if recording:
        records = record_epoch(trainer, method)
        assert len(records) == len(INSTANCES)
    else:
        trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return curve, trainer.model.state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"lora": {"r": 2, "lora_dropout": 0.1}}],
    ids=["full", "accumulation", "lora with dropout"],
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2 with dropout"])
def test_training_with_and_without_recording_is_bitwise_equal(
    tmp_path, architecture, method, options
):
    outcomes = []
    for recording in (True, False):
        model = tiny_llama() if architecture == "llama" else tiny_gpt2(dropout=0.1)
        set_seed(0)
        trainer = trainer_for(tmp_path, model=model, learning_rate=LR, **options)
        outcomes.append(train_and_watch(trainer, recording, method))
    assert outcomes[0][0] == outcomes[1][0]
    for name, weight in outcomes[0][1].items():
        assert torch.equal(weight, outcomes[1][1][name]), name


@pytest.mark.parametrize("method", METHODS)
def test_recording_trains_as_trls_own_trainer_does(tmp_path, method):
    """To rounding: the sums are taken in another order."""
    recorded = train_and_watch(
        trainer_for(tmp_path, learning_rate=LR), recording=True, method=method
    )
    plain = SFTTrainer(
        model=tiny_llama(),
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            learning_rate=LR,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            seed=0,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
        ),
        train_dataset=as_dataset(INSTANCES),
        processing_class=tiny_tokenizer(),
    )
    curve, weights = train_and_watch(plain, recording=False)
    assert recorded[0] == pytest.approx(curve, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(recorded[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batching", ["packed", "by_length", "random"])
def test_the_order_of_rows_is_that_of_the_data_seed(tmp_path, batching):
    def order(**sft):
        settings = TrainerSettings(
            {"per_device_train_batch_size": 4, **sft}, None, 0, batching=batching
        )
        trainer = RecordingSFTTrainer(tiny_llama(), tiny_tokenizer(), INSTANCES, settings, tmp_path)
        seen = []
        trainer.on_rows(lambda indices: seen.append(sorted(indices)))
        trainer.train()
        return seen

    assert order(data_seed=1) == order(data_seed=1)
    assert order(data_seed=1) != order(data_seed=2)


@pytest.mark.parametrize("batching", ["packed", "random"])
def test_batches_are_padded_to_a_multiple(tmp_path, batching):
    settings = TrainerSettings({"pad_to_multiple_of": 16}, None, 0, batching=batching)
    trainer = RecordingSFTTrainer(tiny_llama(), tiny_tokenizer(), INSTANCES, settings, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert batch["input_ids"].shape[1] % 16 == 0


def test_the_weights_do_move(tmp_path):
    """Negative control of the two tests above."""
    _, weights = train_and_watch(trainer_for(tmp_path, learning_rate=LR), recording=True)
    start = tiny_llama().state_dict()
    assert not torch.equal(weights["lm_head.weight"], start["lm_head.weight"])


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_freed_without_the_garbage_collector(tmp_path, method):
    """A graph that waits for it holds all activations: gigabytes on a real model."""
    trainer = trainer_for(tmp_path)
    recorder = recorder_for(trainer, method, SketchSpec(16, 0))
    alive = []

    def remember(module, inputs, output):
        alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    trainer.model.model.layers[0].register_forward_hook(remember)
    trainer.model.model.embed_tokens.register_forward_hook(remember)
    gc.disable()
    try:
        for _ in range(3):
            trainer.dry_run_step([0, 1], recorder)
            assert [ref() for ref in alive if ref() is not None] == []
    finally:
        gc.enable()


def test_step_counts_updates_made_before(tmp_path):
    records = record_epoch(trainer_for(tmp_path, gradient_accumulation_steps=2))
    assert sorted(record.step for record in records.values()) == [0] * 8 + [1] * 8


def test_hooks_are_gone_after_an_error(tmp_path):
    model = tiny_llama()
    with pytest.raises(RuntimeError, match="stop"), Recorder(track(model), SketchSpec(16, 0)):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def check(trainer, method="fused"):
    return self_check(trainer, recorder_for(trainer, method, SketchSpec(16, 0)))


def test_the_self_check_passes_and_leaves_no_trace(tmp_path):
    trainer = trainer_for(tmp_path, model=tiny_gpt2(dropout=0.1), learning_rate=LR)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    result = check(trainer)
    assert result.n_rows == 2
    assert result.worst_relative_error < 1e-4
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.model.get_input_embeddings().weight is trainer.model.lm_head.weight
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert trainer.model.transformer.drop.p == pytest.approx(0.1)


def scaled_embedding(factor):
    model = tiny_llama()
    embedding = model.model.embed_tokens
    plain = type(embedding).forward
    embedding.forward = lambda ids: factor * plain(embedding, ids)
    return model


@pytest.mark.parametrize("method", ["fused", "hooked"])
@pytest.mark.parametrize("factor", [3, 1.01])
def test_the_self_check_refuses_a_scaled_embedding(tmp_path, method, factor):
    trainer = trainer_for(tmp_path, model=scaled_embedding(factor))
    with pytest.raises(
        ValueError, match=rf"recorded embedding gradient.*ratio {str(1 / factor)[:5]}"
    ):
        check(trainer, method)


def test_a_scaled_embedding_is_intercepted(tmp_path):
    trainer = trainer_for(tmp_path, model=scaled_embedding(3))
    _, result = first_exact_method(trainer, SketchSpec(16, 0))
    assert result.method == "fused-intercepted"
    assert result.worst_relative_error < 1e-5
    assert list(result.tried) == ["fused"]


def test_the_self_check_refuses_another_head_than_the_models(tmp_path):
    model = tiny_llama()
    trainer = trainer_for(tmp_path, model=model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: 1.01 * output)
    with pytest.raises(ValueError, match="recorded"):
        check(trainer)


def test_logits_that_are_changed_in_an_unknown_way_are_refused_on_every_path(tmp_path):
    model = tiny_llama()
    trainer = trainer_for(tmp_path, model=model)

    def change(module, inputs, output):
        output.logits = output.logits * 1.01
        return output

    model.register_forward_hook(
        lambda module, inputs, output: (
            change(module, inputs, output) if "logits" in output else output
        )
    )
    with pytest.raises(ValueError, match="no recording method is exact") as caught:
        first_exact_method(trainer, SketchSpec(16, 0))
    for method in METHODS:
        assert f"[{method}]" in str(caught.value)


def test_a_model_that_bypasses_its_head_is_refused_by_name(tmp_path):
    trainer = trainer_for(tmp_path, learning_rate=0.0)
    model = trainer.model

    def loss_of(model_, inputs, num_items_in_batch=None, **_):
        hidden = model.model(inputs["input_ids"]).last_hidden_state
        logits = torch.matmul(hidden, model.lm_head.weight.T)
        return logits.logsumexp(-1).sum()

    trainer.compute_loss = loss_of
    with pytest.raises(ValueError, match=r"the hook on the LM head .*was never called"):
        record_epoch(trainer, "hooked")


def test_a_loss_that_weighs_tokens_unequally_is_refused(tmp_path):
    for method, message in (
        ("fused", "weighs the response tokens of one row unequally"),
        ("hooked", "not the mean"),
    ):
        trainer = trainer_for(tmp_path, learning_rate=0.0)

        def weighted(model, inputs, num_items_in_batch=None, method=method):
            if method == "fused":
                tokens = {"response_tokens": inputs[TOKENS]}
                log_probs = model(input_ids=inputs["input_ids"], **tokens)["log_probs"]
            else:
                logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
                log_probs = -torch.nn.functional.cross_entropy(
                    logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none"
                )
            return (log_probs * torch.arange(log_probs.shape[-1])).sum()

        trainer.compute_loss = weighted
        with pytest.raises(ValueError, match=message):
            record_epoch(trainer, method)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"learning_rat": 1e-4}, "does not know: learning_rat"),
        ({"num_train_epochs": 3}, "num_train_epochs: the preliminary epoch is one epoch"),
        ({"packing": True}, "packing: use `batching`"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected a value of type float"),
        ({"per_device_train_batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 2.5}, "2.5, expected a value of type int"),
        ({"optim": "no-such"}, "sft settings .*optim: 'no-such'.*: no-such is not"),
        ({"per_device_train_batch_size": float("inf")}, "inf, expected a value of type int"),
        ({"learning_rate": float("nan")}, "nan, expected a finite number"),
        ({"learning_rate": 10**400}, "000…, expected a finite number"),
        ({"learning_rate": -1}, r"\(learning_rate: -1\): Invalid learning rate"),
        ({"adam_beta1": 2}, r"\(adam_beta1: 2\): Invalid beta"),
        ({"gradient_checkpointing_kwargs": "foo"}, "'foo', expected a value of type dict"),
        ({"lr_scheduler_kwargs": "foo"}, "'foo', expected a value of type dict"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, r"kwargs: {'foo': 1}\): .*foo"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr'\\): .*min_lr"),
        ({"optim_args": "a=1,b"}, "optim_args is 'a=1,b', expected name=value"),
        ({"optim_args": 3}, "optim_args is 3, expected name=value"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, sft, message):
    with pytest.raises(ValueError, match=message) as error:
        trainer_for(tmp_path, **sft)
    assert "\n" not in str(error.value)
    # And before anything is loaded.
    with pytest.raises(ValueError, match=message):
        require_settings(TrainerSettings(sft, None, 0))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without accelerator")
def test_offloading_to_where_everything_is_is_refused():
    with pytest.raises(ValueError, match="activation_offloading: there is no accelerator"):
        require_settings(TrainerSettings({"activation_offloading": True}, None, 0))


@pytest.mark.parametrize(
    "sft",
    [
        {"optim": "adafactor", "optim_args": "scale_parameter=False"},
        {"optim": "sgd", "lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"lr_scheduler_type": "polynomial", "warmup_steps": 0.1, "weight_decay": 0.1},
    ],
)
def test_settings_that_can_be_leave_the_random_state_alone(sft):
    before = torch.get_rng_state()
    require_settings(TrainerSettings(sft, None, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_lora_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rank"):
        trainer_for(tmp_path, lora={"rank": 8})


@pytest.mark.parametrize("method", METHODS)
def test_sums_are_the_same_whether_the_caller_is_inside_autocast(tmp_path, method):
    """Scoring and the self-check call inside, training outside."""
    trainer = trainer_for(tmp_path, bf16=True, learning_rate=0.0)
    recorder = recorder_for(trainer, method, SketchSpec(16, 0))
    finish = recorder.finish
    inside = trainer.dry_run_step([0, 1], recorder)

    def outside(**options):
        with torch.autocast("cpu", enabled=False):
            return finish(**options)

    recorder.finish = outside
    other = trainer.dry_run_step([0, 1], recorder)
    for layer, summaries in inside.summaries.items():
        assert torch.equal(summaries.values_BS, other.summaries[layer].values_BS)
        assert torch.equal(summaries.sketch_BK, other.summaries[layer].sketch_BK)
