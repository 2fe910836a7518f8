"""`gradsift.record` around what people train with: trl, packing, fused losses, mixtures, images."""

import contextlib
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

import gradsift as gs
from gradsift.terms import LAYERS
from gradsift.training.batches import as_dataset
from oracle import assert_store_is_autograd, gradients_of
from tiny import random_instances, tiny_llama, tiny_tokenizer

N = 12
INSTANCES = random_instances(N, seed=3, n_prompt=2, prefix="")
SMALL = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def seeded(make, *args, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **kwargs)


def tiny_gemma(generation):
    kind, config = {
        2: (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)),
        3: (Gemma3ForCausalLM, Gemma3TextConfig(**SMALL, head_dim=8)),
    }[generation]
    return seeded(kind, config)


def tiny_mixtral(coefficient=0.02):
    options = {"num_local_experts": 4, "router_aux_loss_coef": coefficient}
    return seeded(MixtralForCausalLM, MixtralConfig(**SMALL, **options))


def sft_trainer(tmp_path, model, dataset=None, **options):
    options = {"bf16": False, "max_length": None, "gradient_checkpointing": False} | options
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=options.pop("batch_size", 4),
        learning_rate=0.0,
        num_train_epochs=1,
        report_to="none",
        use_cpu=True,
        **options,
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(INSTANCES) if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


def rows_by_tokens():
    from gradsift.recording.row_names import row_key

    return {
        row_key(torch.tensor(row.input_ids), torch.tensor(row.labels)): row for row in INSTANCES
    }


def assert_is_autograd(store, model, tolerance=1e-5, rows=None):
    rows = rows_by_tokens() if rows is None else rows
    assert set(store.layers) == set(LAYERS)
    assert_store_is_autograd(store, rows, model, tolerance)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_trls_packing_leaves_a_record_a_row(tmp_path, strategy, checkpointing):
    dataset = as_dataset(INSTANCES).remove_columns("instance_index")
    trainer = SFTTrainer(
        model=tiny_llama(),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=2, learning_rate=0.0,
            num_train_epochs=1, report_to="none", use_cpu=True, bf16=False, packing=True,
            packing_strategy=strategy, max_length=64, gradient_checkpointing=checkpointing,
        ),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    assert len(trainer.train_dataset) < N
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_rows_that_are_flattened_without_a_mask(tmp_path):
    """transformers' own way: one row of the batch, positions that begin anew."""
    model = tiny_llama()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "trainer"), per_device_train_batch_size=4, report_to="none",
            learning_rate=0.0, num_train_epochs=1, use_cpu=True, remove_unused_columns=False,
        ),
        train_dataset=as_dataset(INSTANCES).remove_columns("instance_index"),
        data_collator=DataCollatorWithFlattening(),
    )  # fmt: skip
    model.config.use_cache = False
    with gs.record(model, out=tmp_path / "run") as seen:
        trainer.train()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def packed_batch(*, mask):
    rows = INSTANCES[:3]
    batch = {
        "input_ids": torch.tensor([[t for row in rows for t in row.input_ids]]),
        "labels": torch.tensor([[t for row in rows for t in row.labels]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row.input_ids))]]),
    }
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch


def test_where_rows_begin_may_be_told_as_flash_attention_is_told(tmp_path):
    from gradsift.recording.loop_batch import positions_from

    batch = packed_batch(mask=False)
    lengths = [len(row.input_ids) for row in INSTANCES[:3]]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    assert torch.equal(positions_from(starts, batch["labels"]), batch["position_ids"])
    # On a CPU no attention heeds them: rows see each other, and that is noticed.
    del batch["position_ids"]
    with (
        pytest.raises(ValueError, match="rows are packed, and see each other"),
        gs.record(tiny_llama(), out=tmp_path / "run") as seen,
    ):
        seen._outer(**batch, use_cache=False, cu_seq_lens_q=starts, cu_seq_lens_k=starts)


@pytest.mark.parametrize("case", ["mask", "cache", "mamba"])
def test_packed_rows_that_see_each_other_are_refused(tmp_path, case):
    model = tiny_llama()
    if case == "mamba":
        config = MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=2, state_size=4)
        model = seeded(MambaForCausalLM, config)
    batch = packed_batch(mask=case == "mask") | {"use_cache": case == "cache"}
    if case == "mamba":
        del batch["use_cache"]
    with (
        pytest.raises(ValueError, match="rows are packed, and see each other"),
        gs.record(model, out=tmp_path / "run"),
    ):
        model(**batch).loss.backward()


def test_packed_rows_of_ones_own_have_an_id_each(tmp_path):
    model = tiny_llama()
    batch = packed_batch(mask=False) | {"use_cache": False}
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        model(**batch, row=[7, 3, 5]).loss.backward()
    rows = dict(zip(("7", "3", "5"), INSTANCES[:3], strict=True))
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64), rows=rows)
    with (
        pytest.raises(ValueError, match="a batch of 3 rows has 1 ids"),
        gs.record(model, out=tmp_path / "other", ids="row"),
    ):
        model(**batch, row=[7])


class NumberedMasks(nn.Module):
    """A model that heeds masks like [1, 1, 2, 2, 0], as axolotl and LLaMA-Factory patch theirs."""

    def __init__(self):
        super().__init__()
        self.model = tiny_llama()
        plain = self.model.forward

        def forward(input_ids, attention_mask=None, **kwargs):
            if attention_mask is not None:
                same_BTT = attention_mask[:, :, None] == attention_mask[:, None]
                attention_mask = same_BTT.tril().unsqueeze(1)
            return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        self.model.forward = forward


def test_a_mask_that_numbers_packed_rows(tmp_path):
    model = NumberedMasks().model
    batch = packed_batch(mask=False)
    numbers = [i + 1 for i, row in enumerate(INSTANCES[:3]) for _ in row.input_ids]
    del batch["labels"]
    labels = packed_batch(mask=False)["labels"]
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        mask = torch.tensor([numbers])
        model(**batch, labels=labels, attention_mask=mask, row=[0, 1, 2]).loss.backward()
    rows = {str(i): row for i, row in enumerate(INSTANCES[:3])}
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64), rows=rows)


def test_trls_wrapped_packing_is_refused_by_name(tmp_path):
    dataset = as_dataset(INSTANCES).remove_columns("instance_index")
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 64}
    trainer = sft_trainer(tmp_path, tiny_llama(), dataset, **options)
    for loop in (trainer, trainer.model):
        with (
            pytest.raises(ValueError, match="packing_strategy is 'wrapped'"),
            gs.record(loop, out=tmp_path / "run"),
        ):
            trainer.train()


def preferences():
    rows = [{"prompt": f"q{i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(8)]
    return Dataset.from_list(rows)


def preference_trainer(kind, tmp_path):
    import trl

    common = {
        "output_dir": str(tmp_path / "trl"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    dataset = preferences()
    if kind == "KTO":
        rows = [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row in dataset
            for name in ("chosen", "rejected")
        ]
        dataset = Dataset.from_list(rows)
    return getattr(trl, f"{kind}Trainer")(
        model=tiny_llama(),
        ref_model=tiny_llama(),
        args=getattr(trl, f"{kind}Config")(**common),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_preferences_are_refused_by_name(tmp_path, kind):
    trainer = preference_trainer(kind, tmp_path)
    for loop in (trainer, trainer.model):
        with (
            pytest.raises(ValueError, match=f"{kind}Trainer does not train on the likelihood"),
            gs.record(loop, out=tmp_path / "run"),
        ):
            trainer.train()


def preference_loss(model, batch):
    logits = model(**batch).logits[:, :-1].transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, batch["labels"][:, 1:], reduction="none")
    return nn.functional.logsigmoid(losses[0].sum() - losses[1].sum())


def test_a_loss_that_makes_responses_less_likely_is_refused(tmp_path):
    model = tiny_llama()
    batch = as_batch(INSTANCES[:2])
    with (
        pytest.raises(ValueError, match="makes the response of a row less likely"),
        gs.record(model, out=tmp_path / "run"),
    ):
        preference_loss(model, batch).backward()


def as_batch(rows):
    width = max(len(row.input_ids) for row in rows)

    def padded(values, fill):
        return torch.tensor([list(v) + [fill] * (width - len(v)) for v in values])

    return {
        "input_ids": padded([row.input_ids for row in rows], 0),
        "labels": padded([row.labels for row in rows], -100),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
    }


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_gemma_under_trl(tmp_path, generation, bf16):
    trainer = sft_trainer(tmp_path, tiny_gemma(generation), bf16=bf16)
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert seen.check.method == "hidden-intercepted"
    model = tiny_gemma(generation).double()
    if not bf16:
        assert_is_autograd(seen.store, model)
    rows = rows_by_tokens()
    for at, key in enumerate(seen.store.instance_ids):
        truth, _ = gradients_of(model, rows[key].input_ids, rows[key].labels)
        for layer in LAYERS:
            want = float(truth[layer].norm())
            assert seen.store.statistics[layer]["l2_norm"][at] == pytest.approx(want, rel=0.03)


def test_trls_default_precision_and_checkpoints(tmp_path):
    trainer = sft_trainer(tmp_path, tiny_llama(), bf16=True, gradient_checkpointing=True)
    with gs.record(trainer, out=tmp_path / "run") as seen:
        trainer.train()
    assert seen.check.dtype == "bfloat16"
    assert set(seen.store.instance_ids) == set(rows_by_tokens())


def test_the_auxiliary_loss_of_a_mixture_is_refused_and_without_it_all_is_exact(tmp_path):
    trainer = sft_trainer(tmp_path / "a", tiny_mixtral())
    assert trainer.aux_loss_enabled
    for loop in (trainer, trainer.model):
        with (
            pytest.raises(ValueError, match="set router_aux_loss_coef=0"),
            gs.record(loop, out=tmp_path / "refused"),
        ):
            trainer.train()
    model = tiny_mixtral()
    model.config.output_router_logits = True
    with (
        pytest.raises(ValueError, match="Auxiliary losses"),
        gs.record(model, out=tmp_path / "of_ones_own"),
    ):
        model(**as_batch(INSTANCES[:4])).loss.backward()
    trainer = sft_trainer(tmp_path / "b", tiny_mixtral(), router_aux_loss_coef=0.0)
    with gs.record(trainer.model, out=tmp_path / "run") as seen:
        trainer.train()
    assert_is_autograd(seen.store, tiny_mixtral(0.0), tolerance=1e-4)  # No float64 experts.


def chat_file(tmp_path, n=10):
    data = tmp_path / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i * i}"},
                {"role": "assistant", "content": f"answer {i} " * (i % 4 + 1)},
            ]
        }
        for i in range(n)
    ]
    rows[-1] = rows[0]  # Equal rows are two.
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 128}], ids=["", "packed"])
@pytest.mark.parametrize("by_trainer", [True, False])
def test_trl_with_a_pool_to_a_subset(tmp_path, options, by_trainer):
    data = chat_file(tmp_path)
    trainer = SFTTrainer(
        model=tiny_llama(),
        args=SFTConfig(str(tmp_path / "trl"), num_train_epochs=1, report_to="none", use_cpu=True,
                       bf16=False, learning_rate=0.0, **options),
        train_dataset=Dataset.from_json(str(data)),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    loop = trainer if by_trainer else trainer.model
    with gs.record(loop, out=tmp_path / "run", pool=gs.load_pool(data)) as seen:
        trainer.train()
    assert len(seen.store.instance_ids) == 10
    assert seen.n_unknown == 0
    result = gs.select(tmp_path / "run", budget=4)
    kept = result.selected_file.read_text().splitlines()
    assert len(kept) == 4
    assert set(kept) <= set(data.read_text().splitlines())


FORMATS = {
    "pairs": lambda row: {"prompt": row["question"], "completion": row["answer"]},
    "text": lambda row: {"text": f"### Question:\n{row['question']}\n### Answer:\n{row['answer']}"},
    "chat": lambda row: {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    },
}


@pytest.mark.parametrize("form", FORMATS)
def test_rows_that_the_loop_puts_into_words_of_its_own(tmp_path, form):
    """The pool has question and answer columns; what trl is given is written from them."""
    data = tmp_path / "qa.jsonl"
    rows = [
        {"question": f"What is number {i}?", "answer": "so " * (i % 2) + f"it is {i}"}
        for i in range(9)
    ]
    rows.append(rows[4])
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = Dataset.from_list([FORMATS[form](row) for row in rows])
    trainer = sft_trainer(tmp_path, tiny_llama(), dataset, max_length=256)
    with gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(data)) as seen:
        trainer.train()
    assert seen.n_unknown == 0
    assert len(seen.store.instance_ids) == 10
    tokenizer, pool = tiny_tokenizer(), gs.load_pool(data)
    ids = {row.instance_id: i for i, row in enumerate(pool.rows)}
    n_response = dict(zip(seen.store.instance_ids, seen.store.n_response_tokens, strict=True))
    if form == "pairs":  # Each row is the one that it says it is.
        for instance_id, n in n_response.items():
            answer = rows[ids[instance_id]]["answer"]
            assert n == len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1


def test_rows_of_another_file_are_told_before_training(tmp_path):
    data = chat_file(tmp_path)
    other = tmp_path / "other.jsonl"
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(3)]
    other.write_text("\n".join(lines) + "\n")
    trainer = sft_trainer(tmp_path, tiny_llama(), Dataset.from_json(str(data)), max_length=128)
    with pytest.raises(ValueError, match="none of 10 rows of the loop is one of the pool"):
        gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(other))
    some = tmp_path / "some.jsonl"
    some.write_text("\n".join(data.read_text().splitlines()[:6]) + "\n")
    with (
        pytest.warns(UserWarning, match="rows of the loop are not in the pool"),
        gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(some)) as seen,
    ):
        trainer.train()
    assert seen.n_unknown == 3
    assert len(seen.store.instance_ids) == 6


def test_data_parallel_on_one_device_is_unwrapped(tmp_path):
    model = nn.DataParallel(tiny_llama())
    with gs.record(model, out=tmp_path / "run") as seen:
        for start in range(0, N, 4):
            model(**as_batch(INSTANCES[start : start + 4])).loss.backward()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


@pytest.fixture
def liger():
    pytest.importorskip("triton")
    return pytest.importorskip("liger_kernel.transformers")


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_ligers_cross_entropy(tmp_path, liger, fused):
    from transformers.models.llama import modeling_llama

    plain_forward = modeling_llama.LlamaForCausalLM.forward
    from transformers.loss import loss_utils

    plain_loss = loss_utils.nn.functional.cross_entropy
    try:
        liger.apply_liger_kernel_to_llama(
            rope=False, swiglu=False, rms_norm=False,
            cross_entropy=not fused, fused_linear_cross_entropy=fused,
        )  # fmt: skip
        model = tiny_llama(tied=False).train()
        with gs.record(model, out=tmp_path / "run") as seen:
            for start in range(0, N, 4):
                model(**as_batch(INSTANCES[start : start + 4])).loss.backward()
    finally:
        modeling_llama.LlamaForCausalLM.forward = plain_forward
        loss_utils.nn.functional.cross_entropy = plain_loss
    assert seen.check.method == "hidden"
    assert_is_autograd(seen.store, tiny_llama(tied=False, dtype=torch.float64))


def test_steps_are_those_of_the_trainer(tmp_path):
    trainer = sft_trainer(tmp_path, tiny_llama(), batch_size=2, gradient_accumulation_steps=2)
    with gs.record(trainer, out=tmp_path / "run") as seen:
        trainer.train()
    np.testing.assert_array_equal(np.unique(seen.store.step), np.arange(3))


def tiny_llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**SMALL),
        image_token_index=261,
        vision_feature_layer=-1,
    )
    return seeded(Llava, config)


@pytest.mark.parametrize("images", ["one a row", "two in one row", "none"])
def test_images_are_given_to_the_check_too(tmp_path, images):
    n_images = {"one a row": [1, 1, 1], "two in one row": [2, 0, 1], "none": [0, 0, 0]}[images]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 260, (3, 20), generator=generator)
    for row, n in enumerate(n_images):
        ids[row, 1 : 1 + 4 * n] = 261
    labels = ids.clone()
    labels[:, :10] = -100
    pixels = torch.rand(sum(n_images), 3, 8, 8, generator=generator)
    extra = {"pixel_values": pixels} if sum(n_images) else {}
    model = tiny_llava()
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        model(**batch, **extra, row=torch.arange(3)).loss.backward()
    truth = tiny_llava().double()
    head, table = truth.lm_head.weight, truth.get_input_embeddings().weight
    start = 0
    for row, n in enumerate(n_images):
        own = {"pixel_values": pixels[start : start + n].double()} if n else {}
        start += n
        logits = truth(input_ids=ids[row : row + 1], **own).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, labels[row, 1:])
        gradients = torch.autograd.grad(loss, (table, head))
        for layer, gradient in zip(LAYERS, gradients, strict=True):
            got = seen.store.statistics[layer]["l2_norm"][row]
            assert got == pytest.approx(float(gradient.norm()), rel=1e-5), layer


def loop(model, optimizer=None, accumulation=1, rows=INSTANCES):
    for number, start in enumerate(range(0, len(rows), 4)):
        (model(**as_batch(rows[start : start + 4])).loss / accumulation).backward()
        if optimizer is not None and number % accumulation == accumulation - 1:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("how", ["whole", "in place", "regional"])
def test_compiled_models(tmp_path, how):
    plain = model = tiny_llama()
    if how == "whole":
        model = torch.compile(model, backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    with gs.record(model, out=tmp_path / "run") as seen:
        loop(model)
    assert plain.config.model_type == "llama"
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_accumulation_counts_updates(tmp_path):
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with gs.record(model, out=tmp_path / "run") as seen:
        loop(model, optimizer, accumulation=2)
    np.testing.assert_array_equal(np.unique(seen.store.step), [0, 1])
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"])
def test_optimizers_of_bitsandbytes(tmp_path, name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = tiny_llama()
    try:
        optimizer = getattr(bitsandbytes.optim, name)(model.parameters(), lr=0.0)
        loop(tiny_llama(), getattr(bitsandbytes.optim, name)(tiny_llama().parameters(), lr=0.0))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"needs a GPU: {error}")
    with gs.record(model, out=tmp_path / "run") as seen:
        loop(model, optimizer)
    assert set(seen.store.step) == {0, 1, 2}
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def test_rows_grouped_by_length(tmp_path):
    options = {"train_sampling_strategy": "group_by_length"}
    trainer = sft_trainer(tmp_path, tiny_llama(), **options)
    with gs.record(trainer, out=tmp_path / "run") as seen:
        trainer.train()
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64))


def tiny_qwen_vl():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = SMALL | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
              "patch_size": 4, "spatial_merge_size": 1}  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=258, video_token_id=259,
        vision_start_token_id=260, vision_end_token_id=261,
    )  # fmt: skip
    return seeded(Qwen2VLForConditionalGeneration, config)


def tiny_gemma_vision():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**SMALL, head_dim=8), vision_config=vision,
        mm_tokens_per_image=4, image_token_index=261, boi_token_index=260, eoi_token_index=259,
    )  # fmt: skip
    return seeded(Gemma3ForConditionalGeneration, config)


@pytest.mark.parametrize("make", [tiny_qwen_vl, tiny_gemma_vision, tiny_llava])
def test_rows_of_text_in_models_that_see(tmp_path, make):
    rows = [row for row in INSTANCES if max(row.input_ids) < 258] or INSTANCES[:2]
    model = make()
    extra = {"token_type_ids": None} if make is tiny_gemma_vision else {}
    batch = as_batch(rows)
    if extra:  # Gemma 3 wants them while it is trained: 0 is text.
        extra = {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    with gs.record(model.train(), out=tmp_path / "run") as seen:
        model(**batch, **extra).loss.backward()
    by_tokens = {key: row for key, row in rows_by_tokens().items() if row in rows}
    assert_is_autograd(seen.store, make().eval().double(), rows=by_tokens)


def flat(rows):
    """Rows end to end in one row of the batch."""
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row.input_ids]]),
        "labels": torch.tensor([[t for row in rows for t in row.labels]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row.input_ids))]]),
    }


@pytest.mark.parametrize("leaks", [True, False])
def test_packed_rows_that_come_later_are_checked_when_they_come(tmp_path, leaks):
    model = tiny_llama()
    model.config.use_cache = leaks
    rows = [INSTANCES[:1], INSTANCES[1:2], INSTANCES[2:5]]
    with (
        pytest.raises(ValueError, match="see each other") if leaks else contextlib.nullcontext(),
        gs.record(model, out=tmp_path / "run") as seen,
    ):
        for members in rows:
            model(**flat(members)).loss.backward()
    if not leaks:
        assert len(seen.store.instance_ids) == 5


def test_the_rows_that_are_compared_stand_behind_others(tmp_path):
    """Two rows of the batch hold one row each, the third two, which see each other."""
    members = [INSTANCES[:1], INSTANCES[1:2], INSTANCES[2:4]]
    width = max(sum(len(row.input_ids) for row in rows) for rows in members)

    def padded(name, fill):
        parts = [flat(rows)[name] for rows in members]
        return torch.cat([nn.functional.pad(p, (0, width - p.shape[1]), value=fill) for p in parts])

    batch = {name: padded(name, fill) for name, fill in
             (("input_ids", 0), ("labels", -100), ("position_ids", 0))}  # fmt: skip
    lengths = torch.tensor([[sum(len(row.input_ids) for row in rows)] for rows in members])
    batch["attention_mask"] = (torch.arange(width)[None] < lengths).long()
    with (
        pytest.raises(ValueError, match="see each other"),
        gs.record(tiny_llama(), out=tmp_path / "run") as seen,
    ):
        seen._outer(**batch)


def test_a_leak_of_less_than_rounding_in_bf16_is_seen(tmp_path):
    """A convolution reaches over the beginning of a row; in bf16 10 % are allowed otherwise."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        **SMALL, conv_L_cache=3, full_attn_idxs=[1], layer_types=["conv", "full_attention"]
    )
    model = seeded(Lfm2ForCausalLM, config)
    with (
        pytest.raises(ValueError, match="see each other"),
        gs.record(model, out=tmp_path / "run"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(**flat(INSTANCES[:3]), use_cache=False).loss.backward()


def test_positions_of_text_and_images(tmp_path):
    """Qwen2-VL takes [4, B, T]: those of the text first."""
    model = tiny_qwen_vl()
    rows = [row for row in INSTANCES if max(row.input_ids) < 258][:3]
    batch = flat(rows)
    batch["position_ids"] = batch["position_ids"].expand(4, -1, -1)
    with gs.record(model, out=tmp_path / "run") as seen:
        model(**batch, use_cache=False).loss.backward()
    assert len(seen.store.instance_ids) == len(rows)


def test_what_is_left_over_needs_no_id(tmp_path):
    batch = flat(INSTANCES[:3])
    for name, fill in (("input_ids", 0), ("labels", -100), ("position_ids", 0)):
        batch[name] = nn.functional.pad(batch[name], (0, 4), value=fill)
    model = tiny_llama()
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        model(**batch, use_cache=False, row=["a", "b", "c"]).loss.backward()
    rows = dict(zip("abc", INSTANCES[:3], strict=True))
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64), rows=rows)


def test_one_packed_row_may_have_its_id_alone(tmp_path):
    model = tiny_llama()
    with gs.record(model, out=tmp_path / "run", ids="row") as seen:
        model(**as_batch(INSTANCES[:1]), row=7).loss.backward()
    assert seen.store.instance_ids == ("7",)


def test_a_row_that_overflowed_is_recorded_when_it_comes_again(tmp_path):
    model = tiny_llama()
    batch = as_batch(INSTANCES[:4])
    with gs.record(model, out=tmp_path / "run") as seen:
        for scale in (1.0, 3e38, 1.0):
            rows = INSTANCES[4:8] if scale > 1 else INSTANCES[:4]
            (model(**as_batch(rows)).loss * scale * 100).backward()
        model(**as_batch(INSTANCES[4:8])).loss.backward()
    assert len(batch) == 3
    assert all(seen.store.finite)
    assert len(seen.store.instance_ids) == 8


def test_rows_that_are_learnt_by_heart_are_no_false_alarm(tmp_path):
    """The softmax is nearly one-hot: its rounding is as large as what is left of the gradient."""
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = INSTANCES[:4]
    for _ in range(150):
        loss = model(**as_batch(rows)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) < 0.01
    with gs.record(model, out=tmp_path / "run") as seen:
        loop(model, rows=rows)
    assert len(seen.store.instance_ids) == 4


def chats_that_end_alike(n, system=None):
    head = [] if system is None else [{"role": "system", "content": system}]
    return [
        {
            "messages": [
                *head,
                {"role": "user", "content": f"How do I count to {i}?"},
                {"role": "assistant", "content": f"Begin with 1, end with {i}."},
                {"role": "user", "content": "Thank you!"},
                {"role": "assistant", "content": "You are welcome, glad to help!"},
            ]
        }
        for i in range(n)
    ]


def test_chats_that_end_alike_are_told_by_all_their_turns(tmp_path):
    """The loop adds a system prompt, so tokens differ."""
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chats_that_end_alike(9)))
    dataset = Dataset.from_list(chats_that_end_alike(9, "Be kind."))
    trainer = sft_trainer(tmp_path, tiny_llama(), dataset, max_length=None)
    with gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(data)) as seen:
        trainer.train()
    assert (len(seen.store.instance_ids), seen.n_unknown, seen.n_repeated) == (9, 0, 0)
    assert_right_rows(seen.store, gs.load_pool(data), dataset, trainer)


def assert_right_rows(store, pool, dataset, trainer):
    """The loss under each id is that of the row that the loop made of this row of the pool."""
    tokenizer, truth = trainer.processing_class, tiny_llama(dtype=torch.float64)
    losses = dict(zip(store.instance_ids, store.loss, strict=True))
    for row, made in zip(pool.rows, dataset, strict=True):
        ids = tokenizer.apply_chat_template(made["messages"], return_dict=True)["input_ids"]
        _, loss = gradients_of(truth, ids, ids)
        assert losses[row.instance_id] == pytest.approx(loss, rel=1e-4)


def test_rows_that_cannot_be_told_are_not_guessed(tmp_path):
    """The pool's rows differ in their system prompts only, which the loop leaves out."""
    data = tmp_path / "chats.jsonl"
    rows = [chats_that_end_alike(1, f"You are number {i}.")[0] for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows + chats_that_end_alike(5)))
    dataset = Dataset.from_list(chats_that_end_alike(1) * 3 + chats_that_end_alike(5)[1:])
    trainer = sft_trainer(tmp_path, tiny_llama(), dataset, max_length=None)
    with gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(data)) as seen:
        trainer.train()
    pool = [row.instance_id for row in gs.load_pool(data).rows]
    assert set(seen.store.instance_ids) == set(pool[3:])
    assert seen.n_repeated == 2  # The same text three times is one row of the pool.


def test_the_same_tokens_divided_otherwise_are_other_rows(tmp_path):
    data = tmp_path / "pairs.jsonl"
    text = "alpha beta gamma delta"
    rows = [{"prompt": text[:n], "completion": text[n:]} for n in (5, 10, 16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = sft_trainer(tmp_path, tiny_llama(), Dataset.from_list(rows), shuffle_dataset=True)
    with gs.record(trainer, out=tmp_path / "run", pool=gs.load_pool(data)) as seen:
        trainer.train()
    n_tokens = dict(zip(seen.store.instance_ids, seen.store.n_response_tokens, strict=True))
    expected = [len(text) - n + 1 for n in (5, 10, 16)]
    assert [n_tokens[row.instance_id] for row in gs.load_pool(data).rows] == expected


def test_accelerate_in_mixed_precision(tmp_path):
    """Autocast is put around the model's forward pass, and its outputs are float32."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        model = tiny_llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model, optimizer = accelerator.prepare(model, optimizer)
        with gs.record(model, out=tmp_path / "run") as seen:
            for start in range(0, N, 4):
                loss = model(**as_batch(INSTANCES[start : start + 4])).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
    assert seen.check.dtype == "bfloat16"
    assert set(seen.store.step) == {0, 1, 2}
    assert_is_autograd(seen.store, tiny_llama(dtype=torch.float64), tolerance=0.05)
