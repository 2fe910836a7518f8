"""One process of several: trains tiny models whose weights or optimizers are sharded."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import DataCollatorForSeq2Seq

import gradsift as gs
from gradsift.training.batches import as_dataset
from tiny import random_instances, tiny_llama, tiny_tokenizer

N_STEPS, N_ROWS, WORLD = 5, 6, 2
LEARNING_RATE = 0.05
DEEPSPEED = (
    "zero2 engine",
    "zero2 raw",
    "zero1 raw untied",
    "zero3 engine",
    "zero3 raw",
    "zero3 raw untied checkpointing",
    "zero3 engine persistent",
)
FSDP2 = (
    "fsdp2",
    "fsdp2 untied checkpointing",
    "fsdp2 untied head",
    "fsdp2 untied head checkpointing",
    "fsdp2 resharding",
    "fsdp2 undivided layers",
    "fsdp2 untied group resharding",
    "fsdp2 untied head hidden-intercepted",
    "fsdp2 scaled",
)
TRAINERS = ("Trainer", "SFTTrainer untied")
MODELS = ("tied", "untied")
INSTANCES = random_instances(20, seed=3, n_prompt=2)


class Scaled(torch.nn.Embedding):
    """As Gemma's: what it gives is not what it looks up."""

    def forward(self, tokens):
        return super().forward(tokens) * 3


def model_of(case):
    model = tiny_llama(tied="untied" not in case)
    if "scaled" in case:
        model.model.embed_tokens.__class__ = Scaled
    if "checkpointing" in case:
        model.gradient_checkpointing_enable()
    return model


def rows_of(rank, world):
    """Batches of six rows: the first process gets more of them, and longer ones."""
    generator = torch.Generator().manual_seed(0)
    for step in range(N_STEPS):
        lengths = [24, 20, 17, 9, 7, 5]
        ids = torch.randint(6, 262, (N_ROWS, 24), generator=generator)
        mask = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
        labels = torch.where((mask > 0) & (torch.arange(24) > 2), ids, -100)
        if step < 2:
            labels[4:] = -100  # The last process has nothing to record, even in the first step.
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batch["row"] = torch.arange(N_ROWS * step, N_ROWS * (step + 1))
        if world == 1:
            yield batch
        else:
            part, width = (slice(0, 4), 24) if rank == 0 else (slice(4, 6), 7)
            yield {k: v[part, :width] if v.dim() > 1 else v[part] for k, v in batch.items()}


def loss_of(model, batch, world):
    # A sum divided by a constant, so that one and two processes take the same steps.
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / 50 * world


def groups_of(model):
    biases = [p for p in model.parameters() if p.dim() == 1]
    others = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": others}, {"params": biases, "lr": LEARNING_RATE / 2}]


def train(model, rank, world):
    optimizer = torch.optim.SGD(groups_of(model), lr=LEARNING_RATE)
    for batch in rows_of(rank, world):
        loss_of(model, batch, world).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_by_engine(engine, rank, world):
    for batch in rows_of(rank, world):
        engine.backward(loss_of(engine, batch, world))
        engine.step()


def deepspeed_config(stage, **zero):
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # Otherwise 1.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **zero},
    }


def engine_of(model, case):
    import deepspeed

    # Otherwise weights as small as these stay whole.
    few = {} if "persistent" in case else {"stage3_param_persistence_threshold": 0}
    stage = int(case[4])
    config = deepspeed_config(stage, **(few if stage == 3 else {}))
    optimizer = torch.optim.SGD(groups_of(model), lr=LEARNING_RATE)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def shard(model, case):
    for layer in () if "undivided" in case else model.model.layers:
        fully_shard(layer)
    if "head" in case:
        fully_shard(model.lm_head)
        fully_shard(model.model.embed_tokens)
    if "group" in case:  # As accelerate does it.
        fully_shard([model.model.norm, model.lm_head])
    fully_shard(model, reshard_after_forward="resharding" in case)


def loops(out, cases):
    rank, world = dist.get_rank(), dist.get_world_size()
    for case in cases:
        model = model_of(case)
        if case in FSDP2:
            shard(model, case)
            recording = "hidden-intercepted" if "intercepted" in case else "auto"
            with gs.record(model, out=out / case, ids="row", recording=recording):
                train(model, rank, world)
        else:
            engine = engine_of(model, case)
            with gs.record(engine if "engine" in case else model, out=out / case, ids="row"):
                train_by_engine(engine, rank, world)
        if rank == 0:
            print("recorded", case, flush=True)


def trainer_of(name, work_dir, **options):
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    with_liger = " liger" in name
    kind = {"Trainer": TrainingArguments, "SFTTrainer": SFTConfig}[name.split()[0]]
    own = {} if kind is TrainingArguments else {"max_length": None, "gradient_checkpointing": False}
    arguments = kind(
        output_dir=str(work_dir),
        learning_rate=LEARNING_RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        use_liger_kernel=with_liger,
        **own,
        **options,
    )
    tokenizer, model, data = tiny_tokenizer(), model_of(name), as_dataset(INSTANCES)
    if kind is SFTConfig:
        return SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    return Trainer(model, arguments, data_collator=collate, train_dataset=data)


def sharding_options(kind):
    if kind == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2}}
    few = {"stage3_param_persistence_threshold": 0} if kind == "zero3" else {}
    config = deepspeed_config(int(kind[4]), **few)
    return {"deepspeed": config | {"train_micro_batch_size_per_gpu": "auto"}}


def let_accelerate_shard_on_cpus():
    """It shards in processes with an accelerator each; the code from there on is the same."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    original = PartialState.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def trainers(out, kind, names):
    for name in names:
        for given in ("trainer", "model"):
            options = sharding_options(kind)
            trainer = trainer_of(name, out / "work", per_device_train_batch_size=2, **options)
            loop = trainer if given == "trainer" else trainer.model
            with gs.record(loop, out=out / f"{name} {given}"):
                trainer.train()
        trainer = trainer_of(name, out / "work", per_device_train_batch_size=2, **options)
        trainer.add_callback(gs.RecordCallback(out=out / f"{name} callback"))
        trainer.train()


class Interrupted(Exception):
    """As a kill, at a place where all processes are."""


def capture(out, inputs, *, rows_a_process, record_at="during", model="untied", **options):
    sft = {
        "learning_rate": LEARNING_RATE,
        "optim": "sgd",
        "optim_args": "momentum=0.5",  # FSDP2 resumes no optimizer without a state.
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": rows_a_process,
        **options,
    }
    pool = gs.load_pool(str(inputs / "data.jsonl"))
    # Of 21 rows: the last step of training is whole, the last part of scoring is not.
    settings = {"record_at": record_at, "save_steps": 2, "batching": "by_length"}
    if record_at == "after":
        settings |= {"warmup_fraction": 0.95, "signal": "full" if model == "tied" else "head"}
    folder = out / f"{model} {record_at}"
    return gs.capture(str(inputs / model), pool, out=folder, sft=sft, **settings)


def captures(out, kind, inputs):
    options = {"rows_a_process": 2, **sharding_options(kind)}
    for model in MODELS:
        for record_at in ("during", "after"):
            capture(out, inputs, model=model, record_at=record_at, **options)
    from gradsift.training.checkpoint import SaveEvery

    whole, n_saved = SaveEvery.on_save, []

    def on_save(self, *arguments, **named):
        n_saved.append(1)
        if len(n_saved) == 2:
            raise Interrupted
        whole(self, *arguments, **named)

    SaveEvery.on_save = on_save
    try:
        capture(out / "resumed", inputs, **options)
        raise AssertionError("was not interrupted")
    except Interrupted:
        SaveEvery.on_save = whole
    capture(out / "resumed", inputs, **options)


def main():
    out, kind = Path(sys.argv[1]), sys.argv[2]
    if "fsdp2" in sys.argv:
        let_accelerate_shard_on_cpus()
    if kind == "fsdp2":
        dist.init_process_group("gloo")
        loops(out, sys.argv[3:] or FSDP2)
    elif kind == "deepspeed":
        import deepspeed

        deepspeed.init_distributed("gloo")
        loops(out, sys.argv[3:] or DEEPSPEED)
    elif kind == "trainers":
        trainers(out, sys.argv[3], sys.argv[4:] or TRAINERS)
    elif kind == "captures":
        captures(out, sys.argv[3], Path(sys.argv[4]))
    elif kind == "capture":
        from gradsift.cli.main import main as command

        sys.argv[1:] = ["capture", *sys.argv[4:]]
        command()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
