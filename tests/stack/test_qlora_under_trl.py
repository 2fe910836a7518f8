"""QLoRA as people run it, recorded from outside: under trl, to a subset; and in a loop."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

import gradsift as gs
from adapted import gradients_at, recorded, worst_error
from gradsift.terms import LAYERS
from tiny import save_tiny, tiny_tokenizer

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("bf16", "tolerance"), [(True, 0.05), (False, 1e-3)])
def test_from_a_file_to_a_subset(tmp_path, bf16, tolerance, packing):
    """With bf16, trl's default, within its rounding; adapters are bf16 in both."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"what is {i}?", "completion": f" it is {i * i}" * 2} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny(tmp_path / "model", tied=False), quantization_config=config, dtype=torch.float32
    )
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path / "trl"), num_train_epochs=1, use_cpu=True, bf16=bf16,
                  learning_rate=0.0, packing=packing, max_length=96, report_to="none"),
        train_dataset=Dataset.from_json(str(data)),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )  # fmt: skip
    pool = gs.load_pool(data)
    with gs.record(trainer, out=tmp_path / "run", pool=pool) as seen:
        trainer.train()
    assert len(seen.store.instance_ids) == 12
    assert seen.check.dtype == ("bfloat16" if bf16 else "float32")
    base = trainer.model.get_base_model()
    table, head = base.get_input_embeddings(), base.get_output_embeddings()
    at = {id_: i for i, id_ in enumerate(seen.store.instance_ids)}
    tokenizer = tiny_tokenizer()
    for row, pooled in zip(rows, pool.rows, strict=True):
        start = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + "</s>", add_special_tokens=False)[
            "input_ids"
        ]
        labels = [-100] * len(start) + ids[len(start) :]
        truth, loss = gradients_at(trainer.model, table, head, ids, labels)
        i = at[pooled.instance_id]
        assert seen.store.loss[i] == pytest.approx(loss, rel=tolerance)
        for layer in LAYERS:
            got = seen.store.statistics[layer]["l2_norm"][i]
            assert got == pytest.approx(float(truth[layer].norm()), rel=tolerance), layer
    assert len(gs.select(tmp_path / "run", budget=4).selected_file.read_text().splitlines()) == 4


@pytest.mark.parametrize(("bf16", "tolerance"), [(True, 0.06), (False, 1e-5)])
def test_the_loop_that_everybody_writes(tmp_path, bf16, tolerance):
    """Norms and head lifted to float32, reentrant checkpoints, autocast around it all."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        save_tiny(tmp_path / "model", tied=False), quantization_config=config, dtype=torch.float32
    )
    base = prepare_model_for_kbit_training(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seen = recorded(model, tmp_path / "run")
        assert seen.check.dtype == ("bfloat16" if bf16 else "float32")
        model.gradient_checkpointing_disable()
        table, head = base.get_input_embeddings(), base.get_output_embeddings()

        def truth(*row):
            return gradients_at(model, table, head, *row)

        assert worst_error(seen.store, truth) < tolerance
