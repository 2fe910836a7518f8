"""Weights sharded among processes: what is refused, and what is looked at on the way."""

from types import SimpleNamespace

import pytest
import torch

from gradsift.gradients.sketch import SketchSpec
from gradsift.gradients.tracking import is_sharded, shape_of, whole
from gradsift.training.checkpoint import SkipNonFiniteSteps
from gradsift.training.layers import add_fused_head, track
from gradsift.training.self_check import LOOP_METHODS, METHODS
from gradsift.training.sharding import (
    plain_backward,
    require_same_loss_as_fused,
    require_supported,
    shards_weights,
    unchecked,
)
from tiny import tiny_llama

CPU = torch.device("cpu")


def accelerator(*, zero=None, fsdp=None, layout=None):
    state = SimpleNamespace(
        deepspeed_plugin=None if zero is None else SimpleNamespace(zero_stage=zero),
        fsdp_plugin=None if fsdp is None else SimpleNamespace(fsdp_version=fsdp),
    )
    return SimpleNamespace(state=state, parallelism_config=layout)


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (accelerator(fsdp=1), {}, "FSDP1"),
        (accelerator(), {"wants_fsdp": True}, "not on CPUs"),
        (accelerator(layout=SimpleNamespace(cp_size=2)), {}, "cp_size is 2"),
        (accelerator(fsdp=2), {"trains": False}, "`warmup_fraction: 0`"),
        (accelerator(zero=3), {"trains": False}, "`warmup_fraction: 0`"),
    ],
)
def test_what_cannot_be_recorded_is_refused(made, options, message):
    with pytest.raises(ValueError, match=message):
        require_supported(made, **{"wants_fsdp": False, "trains": True, **options})


def test_what_can_be_recorded():
    for made in (accelerator(), accelerator(zero=2), accelerator(zero=3), accelerator(fsdp=2)):
        require_supported(made, wants_fsdp=made.state.fsdp_plugin is not None, trains=True)
    require_supported(accelerator(zero=2), wants_fsdp=False, trains=False)
    assert not shards_weights(accelerator(zero=2))
    assert shards_weights(accelerator(zero=3))


class Scaled(torch.nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens) * 3


def test_the_method_follows_from_the_embedding():
    model = tiny_llama()
    recorder, result = unchecked(track(model), SketchSpec(64), METHODS, CPU)
    assert (recorder.method, result.n_rows) == ("fused", 0)
    assert "not made" in result.sentence()
    model.model.embed_tokens.__class__ = Scaled
    recorder, _ = unchecked(track(model), SketchSpec(64), LOOP_METHODS, CPU)
    assert recorder.method == "hidden-intercepted"
    with pytest.raises(ValueError, match="`recording: hidden` is not exact"):
        unchecked(track(model), SketchSpec(64), ("hidden",), CPU)


def test_the_fused_loss_is_compared_with_the_models_own():
    model = tiny_llama()
    fused = add_fused_head(model)
    ids = torch.randint(6, 262, (2, 9))
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    require_same_loss_as_fused(model, inputs)
    fused.transform = type(fused.transform)(scale=1.5)
    with pytest.raises(ValueError, match="`recording: hooked`"):
        require_same_loss_as_fused(model, inputs)


def test_a_step_that_is_too_late_to_skip_ends_training():
    model, state = tiny_llama(), SimpleNamespace(global_step=4)
    SkipNonFiniteSteps(lambda: True, can_skip=False).on_pre_optimizer_step(None, state, None, model)
    with pytest.raises(ValueError, match="step 4: a row's gradient is not finite"):
        SkipNonFiniteSteps(lambda: False, can_skip=False).on_pre_optimizer_step(
            None, state, None, model
        )


def test_deepspeed_does_not_update_after_a_dry_run():
    model, made = tiny_llama(), accelerator(zero=2)
    with plain_backward(made, model):
        assert not any(p.requires_grad for p in model.parameters())
        x = torch.ones(2, requires_grad=True)
        made.backward(x.sum())
        assert x.grad.tolist() == [1, 1]
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(made, "backward")


def test_a_weight_on_nvme_is_refused():
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_id, parameter.ds_shape = 0, torch.Size([5, 3])
    parameter.ds_tensor = torch.empty(0)
    assert is_sharded(parameter)
    assert shape_of(parameter) == (5, 3)
    with pytest.raises(ValueError, match="NVMe"):
        whole(parameter, dtype=torch.float32, device=CPU, is_resharded=False)


def test_a_weight_that_is_freed_is_copied():
    weight = torch.ones(3)
    for is_resharded in (False, True):
        same = whole(weight, dtype=torch.float32, device=CPU, is_resharded=is_resharded)
        assert (same.data_ptr() == weight.data_ptr()) != is_resharded
