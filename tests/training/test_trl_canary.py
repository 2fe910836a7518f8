"""What gradsift relies on inside trl and transformers; a red test here names what moved."""

import inspect

import torch
from trl import SFTConfig, SFTTrainer

from gradsift.data.tokenization import Instance
from gradsift.training.batches import as_dataset
from tiny import tiny_llama, tiny_tokenizer


def trainer(tmp_path):
    return SFTTrainer(
        model=tiny_llama(),
        args=SFTConfig(output_dir=str(tmp_path), bf16=False, report_to="none", max_length=None),
        train_dataset=as_dataset([Instance("a", [6, 7, 8], [-100, 7, 8])]),
        processing_class=tiny_tokenizer(),
    )


def test_the_fused_head_gives_log_probs_with_a_gradient_and_never_calls_the_head(tmp_path):
    model = trainer(tmp_path).model
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.tensor([[6, 7, 8]])
    output = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert output.log_probs.shape == (1, 2)
    assert output.log_probs.requires_grad
    assert not calls
    assert model(input_ids=ids).logits.shape == (1, 3, 262)
    assert calls


def test_the_backbone_is_called_as_a_module(tmp_path):
    model = trainer(tmp_path).model
    seen = []
    model.base_model.register_forward_hook(lambda m, i, o: seen.append(o.last_hidden_state.shape))
    ids = torch.tensor([[6, 7, 8]])
    model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert seen == [(1, 3, 32)]


def test_columns_that_are_not_in_the_signature_are_removed(tmp_path):
    plain = trainer(tmp_path)
    plain._set_signature_columns_if_needed()
    assert plain._signature_columns == ["input_ids", "labels", "seq_lengths"]


def test_names_that_are_used(tmp_path):
    plain = trainer(tmp_path)
    assert plain._metrics.keys() == {"train", "eval"}
    assert plain._total_train_tokens == 0
    parameters = list(inspect.signature(plain.training_step).parameters)
    assert parameters == ["args", "kwargs"]
