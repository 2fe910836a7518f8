"""Rows in micro-batches: packed end to end, grouped by length, padded; the same records."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

from gradsift.gradients.sketch import SketchSpec
from gradsift.store.manifest import Manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS
from gradsift.training.batches import (
    BATCHINGS,
    Collator,
    LengthGroupedSampler,
    bins,
    packed_batch,
)
from gradsift.training.epoch import PreliminaryEpoch
from gradsift.training.scoring import record_with_frozen_weights
from gradsift.training.settings.trainer import TrainerSettings
from tiny import random_instances, tiny_llama, tiny_mamba, tiny_tokenizer

N = 26


@given(st.lists(st.integers(1, 500), min_size=1, max_size=16), st.sampled_from([8, 576, 8192]))
def test_every_row_is_packed_once_and_none_is_longer_than_a_row_of_the_batch(lengths, width):
    packed = bins(lengths, width)
    assert sorted(i for row in packed for i in row) == list(range(len(lengths)))
    longest = max(sum(lengths[i] for i in row) for row in packed)
    # Never dearer than padding each row to the longest.
    assert len(packed) * longest <= len(lengths) * max(lengths) or longest > max(lengths)


def test_padding_is_weighed_against_attention():
    assert len(bins([30, 20, 15], 8192)) == 1  # No padding at all.
    assert bins([30, 20, 10], 8192) == [[0], [1, 2]]  # Nor here, and shorter rows.
    assert len(bins([300] * 4, 2)) == 4


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_packed_batch_holds_each_row_with_positions_and_labels_of_its_own(multiple):
    rows = [
        {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
        {"input_ids": [21, 22, 23, 24, 25], "labels": [21, 22, 23, 24, 25]},
        {"input_ids": [31, 32], "labels": [-100, 32]},
    ]
    batch, layout, order = packed_batch(rows, 1, 0, multiple)
    assert layout.n_rows == 3
    assert layout.shape[1] % multiple == 0
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == layout.shape
    for values, i in zip(layout.split(batch["input_ids"]), order, strict=True):
        assert values.tolist() == rows[i]["input_ids"]
    for values, i in zip(layout.split(batch["labels"]), order, strict=True):
        assert values.tolist() == [-100, *rows[i]["labels"][1:]]
    for values in layout.split(batch["position_ids"]):
        assert values.tolist() == list(range(len(values)))
    assert [layout.n_tokens_I.tolist()[order.index(i)] for i in range(3)] == [2, 4, 1]


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 3))
def test_the_sampler_gives_each_row_once_and_again_in_the_same_order(n, batch_size, epoch):
    lengths = np.random.default_rng(0).integers(1, 100, n).tolist()
    sampler = LengthGroupedSampler(lengths, batch_size, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(n))
    assert order == list(sampler)


def test_rows_of_a_batch_have_about_one_length_and_the_step_does_not_tell_it():
    lengths = np.random.default_rng(0).lognormal(5, 1, 2048).astype(int).clip(4).tolist()
    order = list(LengthGroupedSampler(lengths, 8, seed=0))
    batches = np.array([lengths[i] for i in order]).reshape(-1, 8)
    assert batches.max(1).sum() * 8 / batches.sum() < 1.15
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 8)
    assert shuffled.max(1).sum() * 8 / shuffled.sum() > 2
    assert abs(np.corrcoef(np.arange(len(batches)), batches.mean(1))[0, 1]) < 0.15
    # The longest first, as transformers sorts them, would be seen.
    by_length = np.sort(lengths)[::-1].reshape(-1, 8)
    assert abs(np.corrcoef(np.arange(len(batches)), by_length.mean(1))[0, 1]) > 0.5


def tiny_opt():
    config = OPTConfig(
        vocab_size=262, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OPTForCausalLM(config)


def captured(folder, batching, *, model=None, record_at="during", backward=True, learning_rate=0.0):
    instances = random_instances(N, seed=0, n_prompt=1)
    sft = {"per_device_train_batch_size": 4, "learning_rate": learning_rate}
    epoch = PreliminaryEpoch(
        tiny_llama() if model is None else model,
        tiny_tokenizer(),
        instances,
        TrainerSettings(sft, None, 0, batching=batching),
        SketchSpec(16, 0),
        folder / "checkpoints",
    )
    epoch.check(backward=backward)
    layers = LAYERS if backward else ("lm_head",)
    writer = StoreWriter(folder, Manifest({}, {}, N, layers), content_width=32, sketch_size=16)
    with writer:
        if record_at == "during":
            epoch.run(writer, save_steps=2)
        else:
            record_with_frozen_weights(
                epoch.trainer, epoch.recorder, instances, writer, backward=backward
            )
    return epoch.trainer, read_store(folder)


@pytest.mark.parametrize(
    ("record_at", "backward"), [("during", True), ("after", True), ("after", False)]
)
@pytest.mark.parametrize("batching", ["packed", "by_length"])
def test_records_are_those_of_padded_rows(tmp_path, batching, record_at, backward):
    options = {"record_at": record_at, "backward": backward}
    _, padded = captured(tmp_path / "padded", "random", **options)
    trainer, ours = captured(tmp_path / "ours", batching, **options)
    assert trainer.batching == batching
    assert ours.instance_ids == padded.instance_ids
    np.testing.assert_allclose(ours.loss, padded.loss, rtol=1e-5)
    np.testing.assert_allclose(ours.content_ND, padded.content_ND, rtol=1e-4, atol=1e-5)
    for layer, by_name in padded.statistics.items():
        for name, values in by_name.items():
            if name != "mean":
                got = ours.statistics[layer][name]
                np.testing.assert_allclose(got, values, rtol=1e-5, err_msg=f"{layer} {name}")


def test_packing_changes_neither_the_order_nor_the_training(tmp_path):
    """The same rows in the same steps, the same weights at the end, up to rounding."""
    model, padded_model = tiny_llama(), tiny_llama()
    options = {"learning_rate": 1e-2}
    trainer, ours = captured(tmp_path / "packed", "packed", model=model, **options)
    padded_trainer, padded = captured(tmp_path / "padded", "random", model=padded_model, **options)
    np.testing.assert_array_equal(ours.step, padded.step)
    np.testing.assert_allclose(ours.loss, padded.loss, rtol=1e-3)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, padded_model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert trainer.n_tokens == padded_trainer.n_tokens
    assert trainer.n_computed < 1.1 * trainer.n_tokens
    assert padded_trainer.n_computed > 1.3 * padded_trainer.n_tokens


def test_what_fills_a_packed_batch_up_changes_nothing(tmp_path, monkeypatch):
    _, want = captured(tmp_path / "plain", "packed", record_at="after")
    monkeypatch.setattr(
        Collator, "multiple", property(lambda _: 64, lambda *_: None), raising=False
    )
    _, got = captured(tmp_path / "filled", "packed", record_at="after")
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
    for layer, by_name in want.statistics.items():
        np.testing.assert_allclose(got.statistics[layer]["std"], by_name["std"], rtol=1e-5)


def test_cudnn_attention_is_left_out_of_steps_and_scoring_alone(tmp_path):
    seen, model = [], tiny_llama()
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    captured(tmp_path / "during", "packed", model=model)
    captured(tmp_path / "after", "packed", model=model, record_at="after", backward=False)
    assert seen.count(False) > seen.count(True)  # Checks of the model are no steps.
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("make", [tiny_mamba, tiny_opt])
def test_a_model_that_lets_rows_see_each_other_is_grouped_by_length(tmp_path, make):
    """OPT counts its positions itself, and calls a part of its backbone only."""
    trainer, store = captured(tmp_path / "auto", "auto", model=make())
    assert trainer.batching == "by_length"
    assert len(store.instance_ids) == N
    with pytest.raises(ValueError, match="ForCausalLM does not keep packed rows apart"):
        captured(tmp_path / "packed", "packed", model=make())


def test_names():
    assert set(BATCHINGS) == {"packed", "by_length", "random"}
