"""`RecordCallback` in trainers that exist already: the records of `record`, the same training."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

import gradsift as gs
from gradsift.data.tokenization import build_instances
from oracle import gradients_of, store_errors
from tiny import save_tiny, tiny_llama, tiny_tokenizer

N = 10
ROWS = [{"prompt": f"what is {i}? ", "completion": f"it is {i * i}"} for i in range(N)]


def dataset():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def trls_trainer(tmp_path, *, callbacks=(), peft_config=None, rows=None, **options):
    """As people make it: rows of text, and trl's own defaults but for what is given."""
    arguments = SFTConfig(
        str(tmp_path / "trl"), report_to="none", use_cpu=True, num_train_epochs=1, **options
    )
    torch.manual_seed(0)
    return SFTTrainer(
        tiny_llama(),
        arguments,
        train_dataset=rows or dataset(),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        peft_config=peft_config,
    )


LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
SETUPS = {
    "bf16 and accumulation": (
        0.03,
        {"bf16": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    ),
    "LoRA in bf16": (
        0.03,
        {"bf16": True, "per_device_train_batch_size": 4, "peft_config": LORA},
    ),
    "packed": (1e-4, {"bf16": False, "packing": True, "max_length": 128}),
}


@pytest.mark.parametrize("name", SETUPS)
def test_the_records_are_those_of_record_and_training_does_not_notice(tmp_path, name):
    _, options = SETUPS[name]
    pool, weights, stores = gs.load_pool(ROWS), {}, {}
    for how in ("alone", "callback", "with"):
        callback = gs.RecordCallback(out=tmp_path / how, pool=pool)
        mine = [callback] if how == "callback" else []
        trainer = trls_trainer(tmp_path, callbacks=mine, learning_rate=1e-3, **options)
        if how == "with":
            with gs.record(trainer, out=tmp_path / how, pool=pool) as seen:
                trainer.train()
            stores[how] = seen.store
        else:
            trainer.train()
        weights[how] = {key: w.clone() for key, w in trainer.model.state_dict().items()}
        assert not {"training_step", "get_batch_samples"} & vars(trainer).keys()
        assert not any(m._forward_pre_hooks for m in trainer.model.modules())
        if how == "callback":
            stores[how] = callback.recording.store
            assert "RecordCallback(Recording(done: GradientStore(10 instances" in repr(callback)
    for key, weight in weights["alone"].items():
        assert torch.equal(weight, weights["callback"][key]), key
    by_callback, by_record = stores["callback"], stores["with"]
    assert by_callback.instance_ids == by_record.instance_ids
    np.testing.assert_array_equal(by_callback.loss, by_record.loss)
    np.testing.assert_array_equal(by_callback.content_ND, by_record.content_ND)
    for layer, statistics in by_record.statistics.items():
        for statistic, values in statistics.items():
            np.testing.assert_array_equal(by_callback.statistics[layer][statistic], values)
    assert len(gs.select(tmp_path / "callback", budget=3)) == 3


@pytest.mark.parametrize("name", SETUPS)
def test_the_records_are_autograds(tmp_path, name):
    tolerance, options = SETUPS[name]
    pool = gs.load_pool(ROWS)
    callback = gs.RecordCallback(out=tmp_path / "run", pool=pool)
    trainer = trls_trainer(tmp_path, learning_rate=0.0, **options)
    trainer.add_callback(callback)
    trainer.train()
    examples = [(row.instance_id, row.example) for row in pool.rows]
    items = build_instances(examples, tiny_tokenizer(), max_length=99, truncation="keep_start")
    rows, truth = {row.instance_id: row for row in items.items}, tiny_llama(dtype=torch.float64)
    errors = store_errors(
        callback.recording.store, rows, lambda ids, labels: gradients_of(truth, ids, labels)
    )
    norms = [error for key, error in errors.items() if key[-1] in ("loss", "l2_norm")]
    assert len(norms) == 3 * N
    assert max(norms) < tolerance


def seq2seq_trainer(tmp_path, callbacks):
    """As LLaMA-Factory makes its own: a Seq2SeqTrainer, with callbacks when it is made."""
    tokenizer = tiny_tokenizer()
    examples = [(row.instance_id, row.example) for row in gs.load_pool(ROWS).rows]
    items = build_instances(examples, tokenizer, max_length=99, truncation="keep_start").items
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path / "out"), report_to="none", use_cpu=True, num_train_epochs=1, max_steps=3
    )
    return Seq2SeqTrainer(
        tiny_llama(),
        arguments,
        train_dataset=[{"input_ids": i.input_ids, "labels": i.labels} for i in items],
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def test_a_seq2seq_trainer_as_llamafactorys(tmp_path):
    callback = gs.RecordCallback(out=tmp_path / "run", pool=gs.load_pool(ROWS))
    seq2seq_trainer(tmp_path, [callback]).train()
    assert len(callback.recording.store.instance_ids) == N
    assert callback.recording.n_unknown == 0


@pytest.fixture
def plugin(monkeypatch):
    """The plugin under a stub of axolotl's interface: its BasePlugin, and how plugins are called.

    As in axolotl-ai-cloud/axolotl, src/axolotl/integrations/base.py; axolotl itself is not run.
    """

    class BasePlugin:
        def register(self, cfg):
            pass

        def add_callbacks_post_trainer(self, cfg, trainer):
            return []

    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "gradsift.axolotl", raising=False)
    module = __import__("gradsift.axolotl", fromlist=["RecordPlugin"])
    yield module.RecordPlugin()
    sys.modules.pop("gradsift.axolotl", None)


def test_the_plugin_for_axolotl(tmp_path, plugin):
    module, _, name = plugin.get_input_args().rpartition(".")
    keys = getattr(sys.modules[module], name)
    data = tmp_path / "data.jsonl"
    rows = ({"ask": row["prompt"], "say": row["completion"]} for row in ROWS)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"out": str(tmp_path / "run"), "data": str(data), "sketch_size": 256}
    own |= {"prompt_column": "ask", "response_column": "say"}
    config = keys(gradsift=own)
    trainer = seq2seq_trainer(tmp_path, [])
    for callback in plugin.add_callbacks_post_trainer(config, trainer):
        trainer.add_callback(callback)
    trainer.train()
    assert gs.read_store(tmp_path / "run").sketches["lm_head"].shape == (N, 256)
    for wrong, message in (
        (None, r"expected `gradsift:` with `out`.*found nothing"),
        ({"out": "a"}, r"found \['out'\]"),
        ({**own, "promt_column": "x"}, "promt_column"),
        ({**own, "recording": "best"}, "recording"),
    ):
        with pytest.raises(gs.GradsiftError, match=message):
            plugin.add_callbacks_post_trainer(SimpleNamespace(gradsift=wrong), trainer)


def test_what_other_callbacks_do_with_the_model_is_not_recorded(tmp_path):
    """Passes with gradients of theirs, and an evaluation whose batches have the ids' column."""

    class Other(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            ids = torch.tensor([[5, 6, 7, 8]])
            model(input_ids=ids, labels=ids).loss.backward()
            model.zero_grad()

    items = [[7, 8, 9 + i, 10] for i in range(N)]
    rows = [{"input_ids": ids, "labels": ids, "row": i} for i, ids in enumerate(items)]
    for ids in (None, "row"):
        arguments = TrainingArguments(
            str(tmp_path / "out"), report_to="none", use_cpu=True, num_train_epochs=1,
            remove_unused_columns=False, logging_steps=1, eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        callback = gs.RecordCallback(out=tmp_path / f"run {ids}", ids=ids)
        mine = [{k: v for k, v in row.items() if ids or k != "row"} for row in rows]
        trainer = Trainer(
            tiny_llama(), arguments, train_dataset=mine, eval_dataset=mine,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()), callbacks=[Other(), callback],
        )  # fmt: skip
        trainer.train()
        assert len(callback.recording.store.instance_ids) == N
        assert callback.recording.n_repeated == 0
        assert [step for step, _ in callback.recording.store.about("loss_curve")] == [1, 2]


def test_rows_that_differ_only_behind_the_cut_are_told(tmp_path):
    """Cut to the same tokens and the same labels they are no row of the pool for sure."""
    long = "a long answer that goes on and on and ends with "
    rows = [*ROWS, *({"prompt": "why? ", "completion": f"{long}{i}"} for i in (3, 4))]
    callback = gs.RecordCallback(out=tmp_path / "run", pool=gs.load_pool(rows))
    from datasets import Dataset

    with pytest.warns(UserWarning, match="2 of 12 rows of the loop are not in the pool, or fit"):
        trls_trainer(
            tmp_path, callbacks=[callback], rows=Dataset.from_list(rows), max_length=24, bf16=False
        ).train()
    assert callback.recording.n_unknown == 2
    assert len(callback.recording.store.instance_ids) == N


def test_what_cannot_be_recorded_is_refused_with_the_fix(tmp_path, fresh_run):
    pool = gs.load_pool(ROWS)

    def callback(name="run", **options):
        return gs.RecordCallback(out=tmp_path / name, **({"pool": pool} | options))

    def refused(message, callbacks, *, resume=None, **options):
        options = {"bf16": False, "per_device_train_batch_size": 4} | options
        trainer = trls_trainer(tmp_path, callbacks=callbacks, **options)
        with pytest.raises(gs.GradsiftError, match=message):
            trainer.train(resume_from_checkpoint=resume)
        assert not {"training_step", "get_batch_samples"} & vars(trainer).keys()
        assert not any(m._forward_pre_hooks for m in trainer.model.modules())
        return trainer

    for wrong, message in (
        ({"sketch_size": "many"}, "sketch_size"),
        ({"pool": "data.jsonl"}, "`pool` is 'data.jsonl', expected what gs.load_pool returns"),
        ({"pool": dataset()}, "`pool` is Dataset.*expected what gs.load_pool returns"),
        ({"out": None}, "`out` is None, expected the path"),
    ):
        with pytest.raises(gs.GradsiftError, match=message):
            gs.RecordCallback(**{"out": tmp_path / "run", "pool": pool} | wrong)
    (tmp_path / "a file").touch()
    own_end = "Give an `out` that can be written to.$"
    refused(f"a file.*cannot be written.*{own_end}", [callback("a file/run")])
    refused("holds a capture; give another `out`", [gs.RecordCallback(out=fresh_run, pool=pool)])

    class Late(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            self.trainer.add_callback(callback("late"))

    late = Late()
    trainer = trls_trainer(tmp_path, callbacks=[late], bf16=False, per_device_train_batch_size=4)
    late.trainer = trainer
    with pytest.raises(gs.GradsiftError, match=r"added after training began.*add it before"):
        trainer.train()
    refused("packing_strategy is 'wrapped'.*Set packing_strategy='bfd'", [callback("a")],
            packing=True, packing_strategy="wrapped", max_length=32)  # fmt: skip
    refused("auto_find_batch_size.*set per_device", [callback("c")], auto_find_batch_size=True)
    refused("has two of them.*take one out", [callback("d"), callback("e")])
    refused("the batch has no column 'row'", [callback("g", pool=None, ids="row")])
    # A loss of its own is found in the first step, and what was attached is taken off.
    refused("not the mean negative log-likelihood", [callback("h")], loss_type="dft")
    # So it is where the loop's own data fail; the run folder is free again.
    broken = callback("i", pool=None)
    trainer = trls_trainer(tmp_path, callbacks=[broken], bf16=False)
    trainer.data_collator = lambda rows: rows["no such row"]
    with pytest.raises(TypeError):
        trainer.train()
    assert not any(m._forward_pre_hooks for m in trainer.model.modules())
    with pytest.raises(gs.GradsiftError, match=r"gradsift cannot resume a training of your own"):
        gs.read_store(tmp_path / "i")
    trainer = trls_trainer(tmp_path, callbacks=[callback("i")], bf16=False, save_steps=1)
    trainer.train()
    with pytest.raises(gs.GradsiftError, match=r"another `out` folder"):
        trainer.train()
    refused("resumes at step 1.*train from the beginning", [callback("j")], save_steps=1,
            resume=str(tmp_path / "trl" / "checkpoint-1"))  # fmt: skip
    with pytest.raises(gs.GradsiftError, match=r"no Trainer of transformers.*gradsift\.record"):
        callback("k").on_train_begin(None, None, None)


def code_of(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_examples_of_the_pages_run(tmp_path, monkeypatch, capsys):
    """With a tiny model in place of the hub's, and LLaMA-Factory's run_exp as a stub."""

    def run_exp(callbacks):
        seq2seq_trainer(tmp_path, callbacks).train()

    tuner = ModuleType("llamafactory.train.tuner")
    tuner.run_exp = run_exp
    for name in ("llamafactory", "llamafactory.train"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, tuner.__name__, tuner)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trl.SFTConfig", partial(SFTConfig, use_cpu=True))
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = save_tiny("model")
    around, as_callback, of_llamafactory = code_of("stack.md")
    captured, quietly = code_of("python.md")
    for code in (around + as_callback, of_llamafactory, "import shutil; shutil.rmtree('runs/mine')",
                 captured + quietly):  # fmt: skip
        exec(code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model), {})
    assert "5 selected + 5 rejected + 0 dropped" in capsys.readouterr().out
    stores = [gs.read_store(f"runs/{name}") for name in ("mine", "by-callback", "llamafactory")]
    assert [len(store.instance_ids) for store in stores] == [N, N, N]
