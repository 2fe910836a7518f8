"""What is recorded equals autograd on each row alone, and training does not notice."""

import random

import pytest
import torch
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from gradsift.data.instances import Instance
from gradsift.gradients.recorder import Recorder, SketchSpec
from gradsift.terms import STATISTICS
from gradsift.training.model import track
from gradsift.training.probe import self_check
from gradsift.training.sft import RecordingSFTTrainer, SFTSettings
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
    settings = SFTSettings({"per_device_train_batch_size": 4, **sft}, lora, seed)
    model = tiny_llama() if model is None else model
    return RecordingSFTTrainer(model, tiny_tokenizer(), instances, settings, tmp_path)


def record_epoch(trainer):
    records = []
    with Recorder(track(trainer.model), SketchSpec(4, 0)) as recorder:
        trainer.record_with(recorder, records.extend)
        trainer.train()
    return {record.index: record for record in records}


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
    "lora": {"lora": {"r": 2}},
    "lora, checkpointing": {"lora": {"r": 2}, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_records_are_batch_of_one_autograd(tmp_path, name, tied):
    """At learning rate 0 every row meets the same weights, whatever its batch."""
    options = {"learning_rate": 0.0, **CONFIGURATIONS[name]}
    records = record_epoch(trainer_for(tmp_path, model=tiny_llama(tied=tied), **options))
    assert sorted(records) == list(range(len(INSTANCES)))
    assert_rows_match(records, tiny_llama(tied=tied, dtype=torch.float64), 1e-5)


def test_in_float64_records_are_exact(tmp_path):
    model = tiny_llama(dtype=torch.float64)
    records = record_epoch(trainer_for(tmp_path, model=model, learning_rate=0.0))
    # trl's own loss runs in float32; only the embedding's backprops depend on it.
    assert_rows_match(records, tiny_llama(dtype=torch.float64), 2e-6)
    for i, instance in enumerate(INSTANCES):
        truth, _ = gradients_of(
            tiny_llama(dtype=torch.float64), instance.input_ids, instance.labels
        )
        want = statistics_of(truth["lm_head"])["l2_norm"]
        assert relative_error(records[i].lm_head.values_S[5], want, 0) < 1e-10


def test_a_head_without_a_hook_and_absolute_positions(tmp_path):
    records = record_epoch(trainer_for(tmp_path, model=tiny_gpt2(), learning_rate=0.0))
    assert_rows_match(records, tiny_gpt2().double(), 2e-5)


def train_and_watch(trainer, recording):
    if recording:
        records = record_epoch(trainer)
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
@pytest.mark.parametrize("architecture", ["llama", "gpt2 with dropout"])
def test_training_with_and_without_recording_is_bitwise_equal(tmp_path, architecture, options):
    outcomes = []
    for recording in (True, False):
        model = tiny_llama() if architecture == "llama" else tiny_gpt2(dropout=0.1)
        set_seed(0)
        trainer = trainer_for(tmp_path, model=model, learning_rate=LR, **options)
        outcomes.append(train_and_watch(trainer, recording))
    assert outcomes[0][0] == outcomes[1][0]
    for name, weight in outcomes[0][1].items():
        assert torch.equal(weight, outcomes[1][1][name]), name


def test_recording_trains_as_trls_own_trainer_does(tmp_path):
    from gradsift.training.sft import as_dataset

    recorded = train_and_watch(trainer_for(tmp_path, learning_rate=LR), recording=True)
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
    assert recorded[0] == curve
    for name, weight in weights.items():
        assert torch.equal(weight, recorded[1][name]), name


def test_the_weights_do_move(tmp_path):
    """Negative control of the two tests above."""
    _, weights = train_and_watch(trainer_for(tmp_path, learning_rate=LR), recording=True)
    start = tiny_llama().state_dict()
    assert not torch.equal(weights["lm_head.weight"], start["lm_head.weight"])


def test_step_counts_updates_made_before(tmp_path):
    records = record_epoch(trainer_for(tmp_path, gradient_accumulation_steps=2))
    assert sorted(record.step for record in records.values()) == [0] * 8 + [1] * 8


def test_hooks_are_gone_after_an_error(tmp_path):
    model = tiny_llama()
    with pytest.raises(RuntimeError, match="stop"), Recorder(track(model), SketchSpec(4, 0)):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


LENGTHS = [len(instance.input_ids) for instance in INSTANCES]


def check(trainer):
    return self_check(trainer, Recorder(track(trainer.model), SketchSpec(4, 0)), LENGTHS)


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


def test_the_self_check_refuses_a_scaled_embedding(tmp_path):
    model = tiny_llama()
    plain = type(model.model.embed_tokens).forward
    embedding = model.model.embed_tokens
    embedding.forward = lambda ids: 3 * plain(embedding, ids)
    with pytest.raises(ValueError, match=r"recorded embedding gradient.*ratio 0\.333333"):
        check(trainer_for(tmp_path, model=model))


def test_the_self_check_refuses_another_head_than_the_models(tmp_path):
    model = tiny_llama()
    trainer = trainer_for(tmp_path, model=model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: 1.01 * output)
    with pytest.raises(ValueError, match="recorded"):
        check(trainer)


def test_a_step_whose_head_was_bypassed_is_refused(tmp_path):
    trainer = trainer_for(tmp_path)
    fused = trainer.model.forward

    def without_log_probs(*args, **kwargs):
        output = fused(*args, **kwargs)
        return type("Other", (), {**vars(output), "log_probs": None, "loss": output.loss})

    trainer.compute_loss = lambda model, inputs, **_: (
        without_log_probs(**inputs, fused_lm_head=True).loss
    )
    with pytest.raises(ValueError, match="log_probs of the fused head"):
        record_epoch(trainer)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"learning_rat": 1e-4}, "does not know: learning_rat"),
        ({"num_train_epochs": 3}, "num_train_epochs: the preliminary epoch is one epoch"),
        ({"packing": True}, "packing: packed rows lose their identity"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', expected a value of type float"),
        ({"per_device_train_batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 2.5}, "2.5, expected a value of type int"),
        ({"optim": "no-such"}, "sft settings: .*no-such"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, sft, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, **sft)


def test_unknown_lora_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rank"):
        trainer_for(tmp_path, lora={"rank": 8})
