"""`record` around loops that are not ours: the same records, and the loop does not notice."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import gradsift as gs
from gradsift.gradients.tokens import ResponseTokens
from gradsift.terms import LAYERS
from gradsift.training.batches import as_dataset
from gradsift.training.self_check import LOOP_METHODS
from oracle import assert_store_is_autograd, gradients_of
from tiny import random_instances, tiny_gpt2, tiny_llama, tiny_tokenizer

N = 12


def make_instances():
    return random_instances(N, seed=3, n_prompt=2, prefix="")


INSTANCES = make_instances()


def batches(size=4, names=True):
    for start in range(0, N, size):
        rows = INSTANCES[start : start + size]
        width = max(len(row.input_ids) for row in rows)
        padding = [width - len(row.input_ids) for row in rows]

        def padded(values, fill, padding=padding):
            pairs = zip(values, padding, strict=True)
            return torch.tensor([list(row) + [fill] * n for row, n in pairs])

        batch = {
            "input_ids": padded([row.input_ids for row in rows], 0),
            "labels": padded([row.labels for row in rows], -100),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        }
        yield batch | ({"row": torch.arange(start, start + len(rows))} if names else {})


def train(model, lr=0.0, **options):
    """The loop that everybody writes."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for batch in batches(**options):
        loss = model(**batch).loss
        (loss * 3).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_is_autograd(store, model, tolerance=1e-5):
    assert set(store.layers) == set(LAYERS)
    assert_store_is_autograd(store, {row.instance_id: row for row in INSTANCES}, model, tolerance)


def every_position(labels_BT, mask_BT=None, position_ids_BT=None):
    """As labels that are on an accelerator are laid out."""
    return ResponseTokens.every_position(labels_BT, mask_BT)


LAYOUTS = {"compact": ResponseTokens.compact, "every_position": every_position}


@pytest.mark.parametrize("recording", LOOP_METHODS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_loop_of_ones_own(tmp_path, tied, recording):
    model = tiny_llama(tied=tied)
    with gs.record(model, out=tmp_path, ids="row", recording=recording) as seen:
        train(model)
    assert seen.check.n_rows == 2
    assert seen.check.method == recording
    assert_is_autograd(seen.store, tiny_llama(tied=tied, dtype=torch.float64))


def test_the_loop_does_not_notice(tmp_path):
    weights = []
    for recording in (True, False):
        model = tiny_gpt2(dropout=0.1).train()
        torch.manual_seed(0)
        if recording:
            with gs.record(model, out=tmp_path, ids="row") as seen:
                train(model, lr=0.1)
        else:
            train(model, lr=0.1, names=False)
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert set(seen.store.step) == {0, 1, 2}


def test_lora_and_checkpointing(tmp_path):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_a_compiled_model(tmp_path):
    model = torch.compile(tiny_llama(), backend="eager")
    with gs.record(model, out=tmp_path) as seen:
        train(model, names=False)
    assert len(seen.store.instance_ids) == N


def collate(rows):
    ids = [int(row["instance_index"]) for row in rows]
    at = {i: batch for batch in batches(1) for i in batch["row"].tolist()}
    width = max(at[i]["input_ids"].shape[1] for i in ids)

    def pad(name, fill):
        parts = [at[i][name] for i in ids]
        return torch.cat(
            [torch.nn.functional.pad(p, (0, width - p.shape[1]), value=fill) for p in parts]
        )

    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", -100),
        "attention_mask": pad("attention_mask", 0),
        "row": torch.tensor(ids),
    }


def transformers_trainer(tmp_path, model, **options):
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        num_train_epochs=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        **options,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=as_dataset(INSTANCES), data_collator=collate
    )


def trls_trainer(tmp_path, model, **options):
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=4,
        learning_rate=0.0,
        num_train_epochs=1,
        max_length=None,
        report_to="none",
        use_cpu=True,
        **options,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(INSTANCES),
        processing_class=tiny_tokenizer(),
    )


def test_transformers_trainer(tmp_path):
    model = tiny_llama()
    trainer = transformers_trainer(tmp_path, model, bf16=False)
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        trainer.train()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def assert_trls_store_is_autograd(store, tolerance):
    from gradsift.recording.row_names import row_key

    keys = {
        row_key(torch.tensor(row.input_ids), torch.tensor(row.labels)): row for row in INSTANCES
    }
    assert set(store.instance_ids) == set(keys)
    truth = tiny_llama(dtype=torch.float64)
    for at, key in enumerate(store.instance_ids):
        gradients, _ = gradients_of(truth, keys[key].input_ids, keys[key].labels)
        for layer in LAYERS:
            got = store.statistics[layer]["l2_norm"][at]
            assert got == pytest.approx(float(gradients[layer].norm()), rel=tolerance)


def test_trls_trainer_rows_named_by_their_content(tmp_path):
    trainer = trls_trainer(tmp_path, tiny_llama(), bf16=False)
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert_trls_store_is_autograd(seen.store, 1e-5)


def test_bf16_in_transformers_trainer(tmp_path):
    """Autocast is on inside the model only: what is watched tells the precision."""
    model = tiny_llama()
    trainer = transformers_trainer(tmp_path, model, bf16=True)
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        trainer.train()
    assert seen.check.dtype == "bfloat16"
    assert 1e-3 < seen.check.worst_relative_error < 2e-2
    for at, instance_id in enumerate(seen.store.instance_ids):
        row = INSTANCES[int(instance_id)]
        gradients, _ = gradients_of(tiny_llama(), row.input_ids, row.labels)
        for layer in LAYERS:
            got = seen.store.statistics[layer]["l2_norm"][at]
            assert got == pytest.approx(float(gradients[layer].norm()), rel=0.02)


def test_bf16_in_trls_trainer(tmp_path):
    trainer = trls_trainer(tmp_path, tiny_llama(), bf16=True)
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert seen.check.dtype == "bfloat16"
    assert_trls_store_is_autograd(seen.store, 0.02)


def test_float64_llama(tmp_path):
    """Its norms compute in float32, whatever the weights are."""
    model = tiny_llama(dtype=torch.float64)
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
    assert seen.check.worst_relative_error < 1e-6
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(tmp_path, reentrant):
    model = tiny_llama().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
    assert model.model.layers[0].gradient_checkpointing
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_a_head_of_zeros_lets_no_gradient_through(tmp_path):
    model = tiny_llama(tied=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
    assert not seen.store.statistics["embedding"]["l2_norm"].any()
    assert seen.store.statistics["lm_head"]["l2_norm"].all()


@pytest.mark.parametrize("recording", LOOP_METHODS)
def test_every_position_as_on_an_accelerator(tmp_path, monkeypatch, recording):
    monkeypatch.setattr(ResponseTokens, "of", every_position)
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row", recording=recording) as seen:
        train(model)
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_every_position_under_trl(tmp_path, monkeypatch):
    monkeypatch.setattr(ResponseTokens, "of", every_position)
    trainer = trls_trainer(tmp_path, tiny_llama(), bf16=False)
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert_trls_store_is_autograd(seen.store, 1e-5)


def tiny_pool(tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(N + 1)]
    data.write_text("\n".join(lines) + "\n")
    return gs.load_pool(data)


def test_with_a_pool_the_run_can_be_selected_from(tmp_path):
    pool = tiny_pool(tmp_path)
    model = tiny_llama()
    with gs.record(model, out=tmp_path / "run", ids="row", pool=pool):
        train(model)
    result = gs.select(tmp_path / "run", budget=4)
    assert len(result.selected_file.read_text().splitlines()) == 4
    assert result.counts["dropped_by_reason"] == {"not_recorded": 1}


def test_without_a_pool_there_is_nothing_to_select_from(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path / "run", ids="row"):
        train(model)
    with pytest.raises(gs.GradsiftError, match="does not say which rows it was recorded from"):
        gs.select(tmp_path / "run", budget=4)


def test_a_pool_from_memory_is_kept_in_the_run_folder(tmp_path):
    pool = gs.load_pool([{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(N)])
    model = tiny_llama()
    with gs.record(model, out=tmp_path / "run", ids="row", pool=pool):
        train(model)
    result = gs.select((tmp_path / "run").rename(tmp_path / "moved"), budget=4)
    assert len(result.records()) == 4


def test_evaluation_in_between_is_let_through_and_epochs_repeat(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
        with torch.no_grad():
            model(**next(iter(batches())))
        train(model, size=3)
    assert seen.n_repeated == N
    assert set(seen.store.step) == {0, 1, 2}


def test_rows_without_labels_are_counted(tmp_path):
    model = tiny_llama()
    batch = next(iter(batches()))
    batch["labels"][1] = -100
    with gs.record(model, out=tmp_path, ids="row") as seen:
        model(**batch).loss.backward()
    assert seen.n_without_response == 1
    assert seen.store.instance_ids == ("0", "2", "3")


def scale_embedding(model):
    embedding = model.get_input_embeddings()
    plain = type(embedding).forward
    embedding.forward = lambda ids: 3 * plain(embedding, ids)
    return model


def test_what_hooks_see_wrongly_is_intercepted(tmp_path):
    model = scale_embedding(tiny_llama())
    with gs.record(model, out=tmp_path, ids="row") as seen:
        train(model)
    assert seen.check.method == "hidden-intercepted"
    truth = scale_embedding(tiny_llama(dtype=torch.float64))
    assert_is_autograd(seen.store, truth)
    with (
        pytest.raises(ValueError, match="self-check failed"),
        gs.record(model, out=tmp_path / "again", ids="row", recording="hooked"),
    ):
        train(model)


def refused(tmp_path, message, do, **options):
    model = tiny_llama()
    with (
        pytest.raises(ValueError, match=message),
        gs.record(model, out=tmp_path / "run", **options),
    ):
        do(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_mistakes_are_told(tmp_path):
    batch = next(iter(batches(names=False)))
    without_labels = {k: v for k, v in batch.items() if k != "labels"}
    refused(tmp_path / "a", "without `labels`", lambda model: model(**without_labels))
    refused(tmp_path / "b", "no column 'row'", lambda model: model(**batch), ids="row")
    refused(tmp_path / "c", "nothing was recorded", lambda model: None)

    def twice(model):
        model(**batch)
        model(**batch)

    refused(tmp_path / "d", "two forward passes", twice)

    def smoothed(model):
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        weights = torch.linspace(1, 2, 262)
        torch.nn.functional.cross_entropy(
            logits, batch["labels"][:, 1:].flatten(), weight=weights
        ).backward()

    refused(tmp_path / "e", "not the mean negative log-likelihood", smoothed)
    refused(
        tmp_path / "f", "a pool needs ids", lambda model: model(**batch), pool=tiny_pool(tmp_path)
    )


def token_losses(model, batch):
    labels = batch["labels"]
    output = model(**batch, output_hidden_states=True)
    logits = output.logits[:, :-1].transpose(1, 2)
    losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="none")
    return losses, output, batch["input_ids"], labels


def plain_loss(model, batch):
    losses, _, _, labels = token_losses(model, batch)
    return losses.sum() / (labels[:, 1:] != -100).sum()


def with_prompts(model, batch):
    losses, output, tokens, _ = token_losses(model, batch)
    prompts = torch.nn.functional.cross_entropy(
        output.logits[:, :1].transpose(1, 2), tokens[:, 1:2]
    )
    return losses.mean() + 0.1 * prompts


def with_a_term_on_a_hidden_state(model, batch):
    losses, output, _, _ = token_losses(model, batch)
    return losses.mean() + 0.1 * output.hidden_states[1].square().mean()


def with_weights(factor):
    def loss(model, batch):
        losses, _, _, _ = token_losses(model, batch)
        weights = torch.ones(losses.shape[1])
        weights[3] = factor
        return (losses * weights).mean()

    return loss


def with_class_weights(model, batch):
    _, output, _, labels = token_losses(model, batch)
    weights = torch.ones(262)
    weights[::2] = 1.001
    logits = output.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), weight=weights)


LOSSES = {
    "prompts": (with_prompts, "terms at positions that predict no response token"),
    "hidden state": (with_a_term_on_a_hidden_state, "more than the mean negative log-likelihood"),
    "a thousandth": (with_weights(1.001), "weighs the response tokens of one row unequally"),
    "classes": (with_class_weights, "weighs the response tokens of one row unequally"),
}


@pytest.mark.parametrize("recording", LOOP_METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_are_more_than_the_response_tokens(
    tmp_path, monkeypatch, name, layout, recording
):
    monkeypatch.setattr(ResponseTokens, "of", LAYOUTS[layout])
    loss_of, message = LOSSES[name]
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loop(loss_of):
        for batch in batches(names=False):
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    with (
        pytest.raises(ValueError, match=message),
        gs.record(model, out=tmp_path / "other", recording=recording),
    ):
        loop(loss_of)
    with gs.record(model, out=tmp_path / "plain", recording=recording) as seen:
        loop(plain_loss)
    assert len(seen.store.instance_ids) == N


def test_a_term_beside_the_loss_is_found_under_dropout_and_accumulation(tmp_path):
    """The first forward pass is run again with the same random numbers."""

    def loop(model, weight):
        for batch in batches(names=False):
            losses, output, _, _ = token_losses(model, batch)
            (losses.mean() + weight * output.hidden_states[1].square().mean()).backward()

    model = tiny_gpt2(dropout=0.2).train()
    with gs.record(model, out=tmp_path / "plain") as seen:
        loop(model, 0.0)
    assert len(seen.store.instance_ids) == N
    with (
        pytest.raises(ValueError, match="more than the mean negative log-likelihood"),
        gs.record(model, out=tmp_path / "other"),
    ):
        loop(model, 0.1)


def test_noise_on_the_embeddings_is_refused(tmp_path):
    model = tiny_llama()
    trainer = transformers_trainer(tmp_path, model, bf16=False, neftune_noise_alpha=5.0)
    with (
        pytest.raises(ValueError, match="set neftune_noise_alpha=None"),
        gs.record(model, out=tmp_path / "run", ids="row"),
    ):
        trainer.train()


def test_weights_that_are_not_finite_are_named(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with (
        pytest.raises(ValueError, match=r"the weight model\.layers\.1\.mlp\.up_proj\.weight holds"),
        gs.record(model, out=tmp_path, ids="row"),
    ):
        train(model)


def left_padded(first_label):
    for batch in batches():
        n_tokens = batch["attention_mask"].sum(1)
        for row, n in enumerate(n_tokens.tolist()):
            for name, fill in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
                values = batch[name][row, :n].clone()
                batch[name][row] = fill
                batch[name][row, batch[name].shape[1] - n :] = values
            first = batch["labels"].shape[1] - n
            batch["labels"][row, first:] = batch["input_ids"][row, first:]
            if not first_label:
                batch["labels"][row, first] = -100
        yield batch


def test_padding_on_the_left(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        for batch in left_padded(first_label=False):
            model(**batch).loss.backward()
    truth = tiny_llama(dtype=torch.float64)
    for at, instance_id in enumerate(seen.store.instance_ids):
        ids = INSTANCES[int(instance_id)].input_ids
        assert seen.store.n_response_tokens[at] == len(ids) - 1
        gradients, loss = gradients_of(truth, ids, ids)
        assert seen.store.loss[at] == pytest.approx(loss, rel=1e-5)
        norm = float(gradients["embedding"].norm())
        assert seen.store.statistics["embedding"]["l2_norm"][at] == pytest.approx(norm, rel=1e-4)


def test_a_label_after_padding_predicts_from_nothing(tmp_path):
    def loop(model):
        for batch in left_padded(first_label=True):
            model(**batch).loss.backward()

    refused(tmp_path, r"padded on the left.*label must be -100", loop, ids="row")


def test_a_folder_with_records_is_not_mixed(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row"):
        train(model)
    with pytest.raises(ValueError, match="Use another folder"), gs.record(model, out=tmp_path):
        pass
    np.testing.assert_equal(len(gs.read_store(tmp_path).instance_ids), N)


def test_an_error_in_the_loop_keeps_what_was_recorded(tmp_path):
    def loop(model):
        train(model)
        raise KeyError("the loop's own")

    model = tiny_llama()
    with pytest.raises(KeyError), gs.record(model, out=tmp_path, ids="row"):
        loop(model)
    with pytest.raises(ValueError, match="not finished \\(12 instances so far\\)"):
        gs.read_store(tmp_path)


def test_a_second_backward_pass_through_the_same_graph_is_no_other_row(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        loss = model(**next(iter(batches()))).loss
        loss.backward(retain_graph=True)
        loss.backward()
    assert seen.store.instance_ids == ("0", "1", "2", "3")


def test_a_loop_may_fill_its_tensors_anew(tmp_path):
    """Records are read later: what they are read with is copied."""
    model, buffers = tiny_llama(), {}
    with gs.record(model, out=tmp_path, ids="row") as seen:
        for batch in batches(size=1):
            for name, values in batch.items():
                buffer = buffers.setdefault(name, torch.zeros(1, 40, dtype=values.dtype))
                buffer[:, : values.shape[-1]] = values
            width = batch["labels"].shape[1]
            views = {name: buffer[:, :width] for name, buffer in buffers.items()}
            model(**{**views, "row": buffers["row"][0, :1]}).loss.backward()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_batches_without_labels_are_let_through(tmp_path):
    model = tiny_llama()
    empty = next(iter(batches()))
    empty["labels"] = torch.full_like(empty["labels"], -100)

    def nothing():
        (0.0 * model(**empty).logits.sum()).backward()

    with gs.record(model, out=tmp_path, ids="row") as seen:
        nothing()
        train(model)
        nothing()
    assert seen.n_without_response == 8
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_a_pass_without_gradients_in_between_is_somebody_elses(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        for batch in batches():
            loss = model(**batch).loss
            with torch.no_grad():
                model(**next(iter(batches())))
            loss.backward()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_terms_that_come_later_are_found_later(tmp_path):
    def loop(model):
        for at, batch in enumerate(batches(size=1, names=False)):
            loss_of = plain_loss if at < 5 else with_a_term_on_a_hidden_state
            loss_of(model, batch).backward()

    model = tiny_llama()
    message = "more than the mean negative log-likelihood"
    with pytest.raises(ValueError, match=message), gs.record(model, out=tmp_path):
        loop(model)


def test_weights_that_change_before_the_comparison_are_told(tmp_path):
    def loop(model):
        for batch in batches():
            model(**batch).loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.0 * parameter.grad
            model.zero_grad()

    model = tiny_llama()
    message = "weights changed before"
    with (
        pytest.warns(UserWarning, match=message),
        gs.record(model, out=tmp_path, ids="row") as seen,
    ):
        loop(model)
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


BOXES = {
    "tensors": lambda row: [torch.tensor(i) for i in row.tolist()],
    "a column": lambda row: row.unsqueeze(1),
    "numpy": lambda row: list(row.numpy()),
}


@pytest.mark.parametrize("box", BOXES)
def test_ids_in_any_box(tmp_path, box):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        for batch in batches():
            model(**{**batch, "row": BOXES[box](batch["row"])}).loss.backward()
    assert set(seen.store.instance_ids) == {str(i) for i in range(N)}


def test_ids_that_are_no_rows_and_calls_without_tokens_are_told(tmp_path):
    batch = next(iter(batches()))
    short = {**batch, "row": batch["row"][:2]}
    refused(tmp_path / "a", "4 rows has 2 ids", lambda model: model(**short), ids="row")
    embedded = {"inputs_embeds": torch.zeros(1, 3, 32), "labels": torch.ones(1, 3).long()}
    refused(tmp_path / "b", "without `input_ids`", lambda model: model(**embedded))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    pool = gs.load_pool(data)

    def loop(model):
        model(**batch).loss.backward()

    refused(tmp_path / "c", "is no row of the pool", loop, ids="row", pool=pool)


def test_a_mask_may_be_given_by_its_place(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path, ids="row") as seen:
        for batch in left_padded(first_label=False):
            tokens, mask = batch.pop("input_ids"), batch.pop("attention_mask")
            model(tokens, mask, **batch).loss.backward()
    assert len(seen.store.instance_ids) == N


def test_the_first_batch_with_labels_is_compared_though_it_is_not_the_first(tmp_path):
    empty = next(iter(batches(names=False)))
    empty["labels"] = torch.full_like(empty["labels"], -100)

    def loop(model):
        (0.0 * model(**empty).logits.sum()).backward()
        for batch in batches(names=False):
            with_a_term_on_a_hidden_state(model, batch).backward()

    model, message = tiny_llama(), "more than the mean negative log-likelihood"
    with pytest.raises(ValueError, match=message), gs.record(model, out=tmp_path):
        loop(model)
