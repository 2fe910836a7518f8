"""On a GPU: is everything exact on this device, and what does a step cost beside trl's own?

Correctness comes first: the LM head's statistics, sketches, losses and gradients against float64
written here, then whole self-checks, then host synchronisations and kernel launches. Speed: steps
of random weights in the shapes of real models, each way in turn in one run. It ends non-zero if a
number is off or something broke; a goal of speed that is missed is only printed. What is found goes
to FOLDER/gpu.json after each section.

Usage: python benchmarks/gpu.py [--out .gpu/out] [--only correctness|speed]
       [--shapes 135m,1b,7b-lora-32k,7b-lora-152k] [--repeats 5] [--seed N] [--tiny]
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import accelerate
import peft
import torch
import torch.nn.functional as F
import transformers
import trl
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTTrainer

import gradsift
from gradsift.data.instances import Instance
from gradsift.gradients.arithmetic import BATCHED, BLOCKWISE, TRITON, arithmetics_for
from gradsift.gradients.fused import FusedHead
from gradsift.gradients.head import HeadOutputs, HeadProduct, head_pass
from gradsift.gradients.sketch import SketchSpec, TensorSketch
from gradsift.gradients.statistics import embedding_summaries
from gradsift.gradients.tokens import ResponseTokens
from gradsift.gradients.transform import HeadTransform
from gradsift.terms import STATISTICS
from gradsift.training.probe import forward_records
from gradsift.training.self_check import PATHS, first_exact_path, recorder_for, self_check
from gradsift.training.sft import INDEX_COLUMN, TOKENS, RecordingSFTTrainer
from gradsift.training.sft_settings import SFTSettings

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NO_CUDA = "skipped: no CUDA"
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
LAYOUTS = {"packed": ResponseTokens.packed, "every position": ResponseTokens.every_position}


class Report:
    """Prints with the elapsed seconds, and keeps what was found."""

    def __init__(self, folder):
        self.started, self.path = time.perf_counter(), Path(folder) / "gpu.json"
        self.found = {"wrong": [], "checks": []}

    def say(self, text):
        print(f"[{time.perf_counter() - self.started:6.1f} s] {text}", flush=True)

    def judge(self, name, errors, allowed):
        errors = {k: float(v) if math.isfinite(v) else math.inf for k, v in errors.items()}
        worst = max(errors, key=errors.get)
        self.found["checks"].append({"name": name, "allowed": allowed, "errors": errors})
        verdict = "ok" if errors[worst] <= allowed else "WRONG"
        self.say(f"{verdict:5} {name}: {errors[worst]:.1e} at {worst} (allowed {allowed:.0e})")
        if verdict != "ok":
            off = {key: f"{value:.1e}" for key, value in errors.items() if value > allowed}
            self.wrong(f"{name}: {off}")

    def wrong(self, text):
        self.found["wrong"].append(text)
        self.say(f"WRONG {text}")

    def attempt(self, section, function, *args):
        """What breaks in one section is reported, and the others are run."""
        self.say(f"== {section}")
        try:
            function(self, *args)
        except torch.OutOfMemoryError as error:
            self.say(f"out of memory: {str(error).splitlines()[0]}")
            self.found.setdefault("out_of_memory", []).append(section)
        except Exception as error:
            self.wrong(f"{section} broke: {type(error).__name__}: {error}")
            traceback.print_exc(file=sys.stdout)
        release()
        self.save()

    def save(self):
        self.found["seconds"] = time.perf_counter() - self.started
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1))


def release():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def poison():
    """Leave memory behind that is no number in any dtype: what is not written shows."""
    sizes = [2**power for power in range(6, 28 if CUDA else 18)] * 3
    for tensor in [torch.full((size,), -1, dtype=torch.int32, device=DEVICE) for size in sizes]:
        as_number = tensor[:16].view(torch.bfloat16)
        del tensor, as_number


def to_check():
    """The ways of computing that this device has, the default one first."""
    if CUDA:
        return [TRITON, BATCHED]
    has_triton = INTERPRETED and importlib.util.find_spec("triton") is not None
    return [BLOCKWISE, BATCHED, *([TRITON] if has_triton else [])]


# The float64 reference. Shapes: n tokens of one row, V vocabulary, r of it in a block, D width.


class Truth:
    """Statistics and sketch of one gradient that is handed in by blocks of its rows, in float64."""

    def __init__(self, sketch, width):
        self.n_entries, self.sketch = sketch.n_rows * width, sketch
        self.high, self.low, self.total, self.absolute, self.square = -math.inf, math.inf, 0, 0, 0
        self.left_KD = torch.zeros(sketch.size, width, dtype=torch.float64, device=DEVICE)

    def add(self, gradient_rD, start):
        self.high = max(self.high, float(gradient_rD.max()))
        self.low = min(self.low, float(gradient_rD.min()))
        self.total += float(gradient_rD.sum())
        self.absolute += float(gradient_rD.abs().sum())
        self.square += float(gradient_rD.square().sum())
        row_r = torch.arange(start, start + len(gradient_rD), device=DEVICE)
        size = self.sketch.size
        bucket_r = (row_r + self.sketch.shift_Q.long()[row_r // size]) % size
        sign_r1 = self.sketch.sign_J[row_r].double().unsqueeze(1)
        self.left_KD.index_add_(0, bucket_r, gradient_rD * sign_r1)

    def result(self):
        size, mean = self.sketch.size, self.total / self.n_entries
        variance = max(0.0, self.square / self.n_entries - mean**2)
        numbers = [self.high, self.low, mean, self.absolute / self.n_entries]
        numbers += [math.sqrt(variance), math.sqrt(self.square)]
        sign_D, bucket_D = self.sketch.column_DK.sum(1), self.sketch.column_DK.abs().argmax(1)
        bucket_KD = (torch.arange(size, device=DEVICE).unsqueeze(1) + bucket_D) % size
        weights = (self.left_KD * sign_D).flatten()
        return {
            **dict(zip(("max", "min", "mean", "mean_abs", "std", "l2_norm"), numbers, strict=True)),
            "sketch": torch.bincount(bucket_KD.flatten(), weights, minlength=size),
        }


def row_truth(x_nD, weight_VD, bias_V, targets_n, scale, softcap, sketch):
    """Loss, EL2N, statistics and sketch of one row, a block of the vocabulary at a time."""
    n_tokens, width = x_nD.shape
    at_once = max(1, min(2**26 // width, 2**25 // n_tokens))
    x_nD = x_nD.double()

    def logits_of(start):
        weight_rD = weight_VD[start : start + at_once].double()
        z_nr = x_nD @ weight_rD.T
        if bias_V is not None:
            z_nr += bias_V[start : start + at_once].double()
        z_nr *= scale
        return z_nr if softcap is None else softcap * torch.tanh(z_nr / softcap)

    starts = range(0, len(weight_VD), at_once)
    log_sums = [torch.logsumexp(logits_of(start), 1) for start in starts]
    log_sum_n1 = torch.logsumexp(torch.stack(log_sums), 0).unsqueeze(1)
    target_n1 = targets_n.unsqueeze(1)
    square_n, loss, truth = 0, 0.0, Truth(sketch, width)
    for start in starts:
        logits_nr = logits_of(start)
        is_target_nr = torch.arange(start, start + logits_nr.shape[1], device=DEVICE) == target_n1
        loss += float((log_sum_n1 - logits_nr)[is_target_nr].sum()) / n_tokens
        delta_nr = (logits_nr - log_sum_n1).exp() - is_target_nr.double()
        square_n = square_n + delta_nr.square().sum(1)
        slope = scale if softcap is None else scale * (1 - (logits_nr / softcap) ** 2)
        truth.add((delta_nr * slope).T @ x_nD / n_tokens, start)
    return {"loss": loss, "error_norm": float(square_n.sqrt().mean()), **truth.result()}


def summary_errors(values_S, sketch_K, want):
    """`mean` is measured against mean_abs, the ends against the larger, the sketch by the norm."""
    end = max(abs(want["max"]), abs(want["min"]))
    scales = {name: want[name] for name in ("mean_abs", "std", "l2_norm")}
    scales |= {"max": end, "min": end, "mean": want["mean_abs"]}
    got = dict(zip(STATISTICS, values_S.tolist(), strict=True))
    errors = {name: abs(got[name] - want[name]) / scale for name, scale in scales.items()}
    off = float((sketch_K.double() - want["sketch"]).norm())
    return {**errors, "sketch": off / want["l2_norm"]}


def largest(errors):
    """The worst of each kind over rows; what is not a number is the worst of all."""
    return {k: max(math.inf if math.isnan(e[k]) else e[k] for e in errors) for k in errors[0]}


# 1a. The head's pass.


@dataclass(frozen=True)
class Case:
    n_columns: int
    width: int
    lengths: tuple[int, ...] = (0, 1, 2, 17, 256)
    sketch_size: int = 1024
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    tokens_at_once: int | None = None  # That many tokens' logits and three rows' gradients.

    def name(self):
        others = {"bias": self.bias, "scale": self.scale != 1, "softcap": self.softcap is not None}
        said = [f"V={self.n_columns} D={self.width} K={self.sketch_size}"]
        said += [name for name, there in others.items() if there]
        return " ".join([*said, *(["in pieces"] if self.tokens_at_once else [])])

    def bounded(self, arithmetic, dtype):
        if self.tokens_at_once is None:
            return arithmetic
        itemsize = arithmetic.operations().operand_dtype(dtype).itemsize
        logits = self.tokens_at_once * self.n_columns * itemsize
        gradients = 3 * arithmetic.align * self.width * itemsize
        formed = arithmetic.gradient_bytes and gradients
        return replace(arithmetic, logits_bytes=logits, gradient_bytes=formed)


CASES = (
    Case(97, 24, sketch_size=64, bias=True),
    Case(512, 100, softcap=5.0),
    Case(32_000, 4096, scale=0.5),
    Case(32_000, 200, (256, 1, 2, 0, 17, 300, 1000), 256, True, 1.0, 10.0, tokens_at_once=600),
    Case(49_152, 576, sketch_size=256, bias=True, scale=2.0, softcap=8.0),
    Case(49_152, 577, (1, 2, 17, 256, 4096)),
    Case(128_256, 2048),
    Case(152_064, 3584, (1, 2, 17, 256, 1200), 2048, softcap=30.0),
)
TINY_CASES = (
    Case(97, 24, (0, 1, 2, 17, 40), 64, bias=True),
    Case(512, 33, (0, 1, 2, 17, 40), softcap=5.0),
    Case(5000, 48, (1, 2, 17, 130), 256, bias=True, scale=2.0, softcap=8.0),
    Case(5000, 20, (40, 1, 2, 0, 17, 30, 90), 2048, True, 1.0, 10.0, tokens_at_once=62),
)


def head_inputs(case, generator):
    """Labels and mask on the CPU, as a collator makes them, and where each row's response begins.

    Half of a row's targets are of three tokens: one more than once, and both ends of the table.
    """
    n_rows, n_positions = len(case.lengths), max(case.lengths) + 5
    labels_BT = torch.full((n_rows, n_positions), -100)
    mask_BT = torch.ones_like(labels_BT)
    begins = [1 + row % 3 for row in range(n_rows)]
    few = torch.tensor([0, case.n_columns - 1, 2047 % case.n_columns])
    for row, (begin, length) in enumerate(zip(begins, case.lengths, strict=True)):
        targets = torch.randint(case.n_columns, (length,), generator=generator)
        targets[::2] = few[torch.randint(3, (len(targets[::2]),), generator=generator)]
        labels_BT[row, begin : begin + length] = targets
        mask_BT[row, begin + max(1, length) :] = 0
    return labels_BT, mask_BT, begins


def normal(shape, seed, std=1.0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, device=DEVICE, generator=generator).mul_(std)


def check_head(report, case, seed):
    labels_BT, mask_BT, begins = head_inputs(case, torch.Generator().manual_seed(seed))
    spec = {"size": case.sketch_size, "seed": seed, "device": DEVICE}
    sketch = TensorSketch.seeded(case.n_columns, case.width, **spec)
    transform = HeadTransform(case.scale, case.softcap)
    std = 2 / (case.scale * math.sqrt(case.width))
    for dtype in (torch.float32, torch.bfloat16):
        hidden_BTD = normal((*labels_BT.shape, case.width), seed).to(dtype)
        weight_VD = normal((case.n_columns, case.width), seed + 1, std).to(dtype)
        bias_V = normal((case.n_columns,), seed + 2).to(dtype) if case.bias else None
        truths = []
        for row, (begin, length) in enumerate(zip(begins, case.lengths, strict=True)):
            x_nD = hidden_BTD[row, begin - 1 : begin - 1 + length]
            targets_n = labels_BT[row, begin : begin + length].to(DEVICE)
            numbers = (weight_VD, bias_V, targets_n, case.scale, case.softcap, sketch)
            truths.append(row_truth(x_nD, *numbers) if length else None)
        for arithmetic in to_check():
            for layout, lay_out in LAYOUTS.items():
                tokens = lay_out(labels_BT, mask_BT).to(DEVICE)
                x_ND = tokens.take(hidden_BTD)
                heads = {"": HeadProduct(x_ND, weight_VD, bias_V)}
                if len(x_ND) * case.n_columns < 2**28:
                    heads[", outputs"] = HeadOutputs(x_ND, F.linear(x_ND, weight_VD, bias_V))
                for kind, head in heads.items():
                    poison()
                    bounded = case.bounded(arithmetic, dtype)
                    rows = head_pass(head, tokens, transform, bounded, sketch=sketch).rows
                    errors = largest(head_errors(rows, case.lengths, truths))
                    name = f"{case.name()}, {dtype}, {arithmetic.name}, {layout}{kind}"
                    report.judge(name.replace("torch.", ""), errors, ALLOWED[dtype])


def head_errors(rows, lengths, truths):
    errors, n_tokens_B = [], rows.n_tokens_B.tolist()
    for row, want in enumerate(truths):
        if want is None:
            assert n_tokens_B[row] == 0, "a row without response tokens has some"
            continue
        loss, error_norm = float(rows.loss_B[row]), float(rows.error_norm_B[row])
        summaries = rows.summaries
        errors.append(
            {
                "loss": abs(loss - want["loss"]) / want["loss"],
                "error_norm": abs(error_norm - want["error_norm"]) / want["error_norm"],
                "n_tokens": abs(n_tokens_B[row] - lengths[row]),
                **summary_errors(summaries.values_BS[row], summaries.sketch_BK[row], want),
            }
        )
    return errors


# 1b. The gradients that training needs.


def check_gradients(report, seed):
    whole = Case(512, 48, (5, 1, 30), bias=True, scale=0.5, softcap=6.0)
    pieces = replace(whole, n_columns=5000, lengths=(5, 1, 30, 50), tokens_at_once=40)
    for case in (whole, pieces):
        labels_BT, mask_BT, _ = head_inputs(case, torch.Generator().manual_seed(seed))
        for kind in ("float32", "bfloat16", "autocast"):
            dtype = torch.float32 if kind == "float32" else torch.bfloat16
            shapes = ((*labels_BT.shape, 48), (case.n_columns, 48), (case.n_columns,))
            made = [normal(shape, seed + i, 0.5).to(dtype) for i, shape in enumerate(shapes)]
            want = autograd_gradients(made, case, labels_BT, mask_BT)
            stored = [t.float() for t in made] if kind == "autocast" else made
            for arithmetic in to_check():
                for layout, lay_out in LAYOUTS.items():
                    tokens = lay_out(labels_BT, mask_BT).to(DEVICE)
                    bounded = case.bounded(arithmetic, dtype)
                    got = fused_gradients(stored, case, tokens, bounded, kind, seed, listens=False)
                    recorded = fused_gradients(stored, case, tokens, bounded, kind, seed)
                    names = ("hidden", "weight", "bias", "loss")
                    errors = {
                        name: float((g.double() - w).norm() / w.norm())
                        for name, g, w in zip(names, got, want, strict=True)
                    }
                    errors["while recording"] = max(
                        float((r.double() - g.double()).norm() / g.double().norm())
                        for r, g in zip(recorded, got, strict=True)
                    )
                    name = f"gradients, {case.name()}, {kind}, {arithmetic.name}, {layout}"
                    report.judge(name, errors, ALLOWED[dtype])
                    if errors["while recording"]:
                        report.say(f"      {name}: recording changes bits of the gradients")


def autograd_gradients(made, case, labels_BT, mask_BT):
    hidden_BTD, weight_VD, bias_V = (t.double().requires_grad_() for t in made)
    z_BTV = F.linear(hidden_BTD, weight_VD, bias_V) * case.scale
    logits_NV = (case.softcap * torch.tanh(z_BTV / case.softcap))[:, :-1].flatten(0, 1)
    labels_N = labels_BT.masked_fill(mask_BT == 0, -100)[:, 1:].flatten().to(DEVICE)
    loss = F.cross_entropy(logits_NV, labels_N, ignore_index=-100)
    return [*torch.autograd.grad(loss, (hidden_BTD, weight_VD, bias_V)), loss.detach()]


def fused_gradients(stored, case, tokens, arithmetic, kind, seed, *, listens=True):
    hidden_BTD = stored[0].clone().requires_grad_()
    head = nn.Linear(case.width, case.n_columns, device=DEVICE, dtype=hidden_BTD.dtype)
    with torch.no_grad():
        head.weight.copy_(stored[1])
        head.bias.copy_(stored[2])
    fused = FusedHead(HeadTransform(case.scale, case.softcap))
    fused.arithmetic = arithmetic
    if listens:
        size, fused.listener = case.sketch_size, lambda *seen: None
        spec = {"size": size, "seed": seed, "device": DEVICE}
        fused.sketch = TensorSketch.seeded(case.n_columns, case.width, **spec)
    poison()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind == "autocast"):
        log_probs_N = fused(hidden_BTD, head, tokens)
    loss = -log_probs_N.sum() / sum(case.lengths)
    poison()
    loss.backward()
    return hidden_BTD.grad, head.weight.grad, head.bias.grad, loss.detach()


# 1c. The embedding.


def check_embedding(report, seed):
    generator = torch.Generator().manual_seed(seed)
    for n_rows, width, n_positions, padding_idx in ((97, 24, 60, 3), (3, 20, 40, None)):
        size = {"size": 64, "seed": seed, "device": DEVICE}
        sketch = TensorSketch.seeded(n_rows, width, **size)
        tokens_BT = torch.randint(n_rows, (5, n_positions), generator=generator).to(DEVICE)
        tokens_BT[0] = 1
        for dtype in (torch.float32, torch.bfloat16):
            delta_BTD = normal((5, n_positions, width), seed).to(dtype)
            poison()
            got = embedding_summaries(tokens_BT, delta_BTD, n_rows, sketch, padding_idx)
            errors = []
            for row in range(5):
                truth = Truth(sketch, width)
                gradient_VD = torch.zeros(n_rows, width, dtype=torch.float64, device=DEVICE)
                for token, delta_D in zip(tokens_BT[row].tolist(), delta_BTD[row], strict=True):
                    if token != padding_idx:
                        gradient_VD[token] += delta_D.double()
                truth.add(gradient_VD, 0)
                values = (got.values_BS[row], got.sketch_BK[row])
                errors.append(summary_errors(*values, truth.result()))
            name = f"embedding, V={n_rows}, padding_idx {padding_idx}, {str(dtype)[6:]}"
            report.judge(name, largest(errors), ALLOWED[dtype])


# Models and trainers for what follows.


@dataclass(frozen=True)
class Shape:
    n_columns: int
    width: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    batch: int
    length: int = 512
    lora: bool = False
    bf16: bool = True


SHAPES = {
    "135m": Shape(49_152, 576, 30, 1536, 9, 3, batch=16),
    "1b": Shape(128_256, 2048, 16, 8192, 32, 8, batch=8),
    "7b-lora-32k": Shape(32_000, 4096, 32, 11_008, 32, 32, batch=8, lora=True),
    "7b-lora-152k": Shape(152_064, 3584, 28, 18_944, 28, 4, batch=8, lora=True),
}
SMALL = Shape(512, 64, 2, 128, 4, 2, batch=4, length=64)


def tiny(shape):
    sizes = {"width": 64, "layers": 2, "intermediate": 128, "heads": 4, "kv_heads": 2}
    return replace(shape, n_columns=shape.n_columns // 64, batch=2, length=32, **sizes)


def tokenizer():
    folder = Path(__file__).parents[1] / ".gpu" / "part1"
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


def trainer_of(shape, n_rows, *, seed=0, same_length=True):
    """Built where it is used, with trl's defaults for a GPU; every row is half response."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.n_columns, hidden_size=shape.width, num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=2048, initializer_range=0.02,
        tie_word_embeddings=not shape.lora, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    dtype = torch.bfloat16 if shape.lora else torch.float32
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    rng, rows = random.Random(seed), []
    for row in range(n_rows):
        length = shape.length if same_length else rng.randint(shape.length // 3, shape.length)
        ids = [rng.randrange(6, shape.n_columns) for _ in range(length)]
        rows.append(Instance(f"r{row}", ids, [-100] * (length // 2) + ids[length // 2 :]))
    sft = {"per_device_train_batch_size": shape.batch, "bf16": shape.bf16}
    settings = SFTSettings({**sft, "gradient_checkpointing": True}, {} if shape.lora else None, 0)
    return RecordingSFTTrainer(model, tokenizer(), rows, settings, Path(tempfile.mkdtemp()))


TRL, PLAIN, FUSED, HOOKED, SCORING = (
    "trl's own", "not recording", "recording, fused", "recording, hooked", "scoring"
)  # fmt: skip


class Steps:
    """The same micro-batches, each way; collated and on the device before anything is measured."""

    def __init__(self, trainer):
        self.trainer, self.sketch = trainer, SketchSpec()
        self.recorders = {SCORING: recorder_for(trainer, "fused", self.sketch)}
        self.recorders[FUSED] = recorder_for(trainer, "fused", self.sketch)
        self.recorders[HOOKED] = recorder_for(trainer, "hooked", self.sketch)
        # As `train` does it: autocast around the forward pass alone, so `finish` is outside.
        trainer.accelerator.prepare_model(trainer.model)
        trainer.model.train()

    def batch(self, at):
        trainer, size = self.trainer, self.trainer.args.per_device_train_batch_size
        rows = [trainer.train_dataset[row] for row in range(at * size, (at + 1) * size)]
        batch = trainer.data_collator(rows)
        indices = batch.pop(INDEX_COLUMN)
        batch = trainer._prepare_inputs(batch)
        return {**batch, INDEX_COLUMN: indices}, (batch["labels"][:, 1:] != -100).sum()

    def run(self, way, prepared):
        """One step without its update; returns what was recorded."""
        trainer, recorder, (batch, n_items) = self.trainer, self.recorders.get(way), prepared
        trainer.use_fused_head(way != HOOKED)
        if way == SCORING:
            collator, trainer.data_collator = trainer.data_collator, lambda rows: dict(batch)
            try:
                # Of the dataset only the collator would make use.
                return forward_records(trainer, batch[INDEX_COLUMN], recorder, range(2**31))
            finally:
                trainer.data_collator = collator
        if way == TRL:
            trainer.compute_loss = lambda model, inputs, **how: SFTTrainer.compute_loss(
                trainer, model, {k: v for k, v in inputs.items() if k != TOKENS}, **how
            )
        seen = []
        if recorder is not None:
            trainer.record_with(recorder, seen.append)
        try:
            with recorder or nullcontext():
                trainer.training_step(trainer.model, dict(batch), n_items)
        finally:
            trainer.stop_recording()
            vars(trainer).pop("compute_loss", None)
        return seen[0] if seen else None

    def clear(self):
        self.trainer.model.zero_grad(set_to_none=True)
        self.trainer.forget_metrics()


# 1d. Whole self-checks.


def check_trainer(report, bf16, seed):
    trainer = trainer_of(replace(SMALL, bf16=bf16), 16, seed=seed, same_length=False)
    counts = [len(row["input_ids"]) for row in trainer.train_dataset]
    head = trainer.model.get_output_embeddings().weight
    first, *others = arithmetics_for(head.device, head.dtype)
    others = [arithmetic for arithmetic in to_check() if arithmetic != first]
    for path in PATHS:
        for backward in (True, False):
            kind = f"self-check, bf16={bf16}, {path}{'' if backward else ', forward only'}"
            _, result = first_exact_path(
                trainer, SketchSpec(), counts, wanted=path, backward=backward
            )
            report.say(f"ok    {kind}: {result.sentence()}")
            report.found["checks"].append({"name": kind, "errors": result.errors})
            if result.tried:  # The fastest arithmetic of this device was not exact.
                report.wrong(f"{kind}: {result.tried}")
            for arithmetic in others:
                recorder = recorder_for(trainer, path, SketchSpec(), arithmetic)
                result = self_check(trainer, recorder, counts, backward=backward)
                report.say(f"ok    {kind}: {result.sentence()}")


# 1e. What waits, and how many kernels.


PACKAGES = ("gradsift", "trl", "transformers", "accelerate", "peft")


def synchronisations(step):
    """Which code made the host wait for the device: the innermost frame of a known package."""
    homes = {name: str(Path(importlib.util.find_spec(name).origin).parent) for name in PACKAGES}
    seen = Counter()

    def note(message, *_, **__):
        if "synchroniz" not in str(message):
            return
        frames = traceback.extract_stack()[::-1]
        for frame in frames:
            for name, home in homes.items():
                if frame.filename.startswith(home + os.sep):
                    place = f"{name} {frame.filename[len(home) + 1 :]}:{frame.lineno} {frame.name}"
                    seen[place] += 1
                    return
        seen[f"elsewhere {frames[1].filename}:{frames[1].lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return seen


def kernels_of(step):
    synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}


def count_waits(report, seed):
    for n_columns in (512, 16_384):
        for n_rows in (4, 16):
            shape = replace(SMALL, n_columns=n_columns, batch=n_rows, length=128)
            steps = Steps(trainer_of(shape, n_rows, seed=seed))
            batch = steps.batch(0)
            about = f"V={n_columns}, {n_rows} rows"
            for way in (TRL, PLAIN, FUSED, HOOKED, SCORING):
                for _ in range(2):
                    steps.run(way, batch)
                    steps.clear()
                if not CUDA:
                    continue
                waits = synchronisations(lambda way=way: steps.run(way, batch))
                steps.clear()
                launched = kernels_of(lambda way=way: steps.run(way, batch))
                steps.clear()
                ours = sum(n for place, n in waits.items() if place.startswith("gradsift "))
                report.say(
                    f"{about}, {way}: {ours} synchronisations in gradsift, "
                    f"{sum(waits.values()) - ours} elsewhere; {launched['kernels']} kernels, "
                    f"{launched['copies']} copies"
                )
                if (n_columns, n_rows) == (512, 4) or ours:
                    for place, n in waits.most_common():
                        print(f"            {n} × {place}")
                said = {"about": about, "way": way, "waits": waits, **launched}
                report.found.setdefault("waits", []).append(said)
            del steps, batch
            release()
    if not CUDA:
        report.say(f"synchronisations, kernel launches: {NO_CUDA} (the steps ran)")


# 2. Speed.


GOALS = {FUSED: 1.05, PLAIN: 1.0}
PEAK_GOAL = 1.02


def measure(report, name, shape, repeats):
    steps = Steps(trainer_of(shape, shape.batch * (repeats + 2)))
    report.say(f"{name}: model built")
    raw = {way: [] for way in (TRL, PLAIN, FUSED, HOOKED, SCORING)}
    reads, peaks, firsts = {FUSED: [], HOOKED: []}, dict.fromkeys(raw, 0), {}
    for repeat in range(-2, repeats):
        batch = steps.batch(repeat + 2)
        # Another one goes first each time, so that drift of the machine falls on all.
        for way in [*list(raw)[repeat % 5 :], *list(raw)[: repeat % 5]]:
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            started = time.perf_counter()
            records = steps.run(way, batch)
            synchronize()
            taken = time.perf_counter() - started
            if repeat == -2:
                firsts[way] = taken
            elif repeat >= 0:
                raw[way].append(taken)
                peaks[way] = max(peaks[way], torch.cuda.max_memory_allocated() if CUDA else 0)
            if way in reads:
                started = time.perf_counter()
                records.read()
                if repeat >= 0:
                    reads[way].append(time.perf_counter() - started)
            steps.clear()
            del records
    said = {"shape": vars(shape), "seconds": raw, "first": firsts, "reads": reads, "peaks": peaks}
    report.found.setdefault("speed", {})[name] = said
    table(report, name, shape, said)


def table(report, name, shape, said):
    raw, peaks, plain = said["seconds"], said["peaks"], said["seconds"][TRL]
    goals = {**GOALS, SCORING: 0.30 if shape.lora else 0.35}
    first = ", ".join(f"{way} {taken:.1f}" for way, taken in said["first"].items())
    kind = "LoRA" if shape.lora else "full"
    report.say(f"{name} ({kind}): trl's step {1000 * statistics.median(plain):.1f} ms; first "
               f"steps, with compiling, in s: {first}")  # fmt: skip
    print(f"    {'step / trl-own':20}{'median':>8}{'min':>8}{'max':>8}  goal{'peak':>14}  goal")

    def verdict(value, goal):
        return "-" if goal is None else f"<= {goal:.2f} {'met' if value <= goal else 'MISSED'}"

    for way, values in raw.items():
        ratios = [ours / own for ours, own in zip(values, plain, strict=True)]
        middle = statistics.median(ratios)
        peak = peaks[way] / peaks[TRL] if CUDA else math.nan
        peak_goal = PEAK_GOAL if CUDA and way in (PLAIN, FUSED, SCORING) else None
        print(
            f"    {way:20}{middle:8.3f}{min(ratios):8.3f}{max(ratios):8.3f}  "
            f"{verdict(middle, goals.get(way)):15}{peak:7.3f} ({peaks[way] / 1e9:.1f} GB)  "
            f"{verdict(peak, peak_goal)}"
        )
    if not CUDA:
        print(f"    peak memory: {NO_CUDA}")
    for way, values in said["reads"].items():
        with_read = [s + r for s, r in zip(raw[way], values, strict=True)]
        ratio = statistics.median(s / own for s, own in zip(with_read, plain, strict=True))
        print(
            f"    {way}: reading the records of one micro-batch, outside the step (the product "
            f"does so for 32 in a row): {1000 * statistics.median(values):.2f} ms; with it {ratio:.3f}"
        )
    sys.stdout.flush()


def about(arguments, seed):
    git = ["git", "-C", str(Path(__file__).parents[1])]

    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changed = output(*git, "rev-parse", "HEAD"), output(*git, "status", "--porcelain")
    triton = importlib.util.find_spec("triton") and __import__("triton").__version__
    libraries = (torch, transformers, trl, accelerate, peft)
    return {
        "device": torch.cuda.get_device_name() if CUDA else platform.processor() or "CPU",
        "versions": {m.__name__: m.__version__ for m in libraries} | {"triton": triton},
        "python": platform.python_version(),
        "gradsift": str(Path(gradsift.__file__).parent),
        "commit": commit and commit.strip(),
        "changed_files": changed and len(changed.splitlines()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "interpreted": INTERPRETED,
        "seed": seed,
        "arguments": vars(arguments),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=".gpu/out")
    parser.add_argument("--only", choices=("correctness", "speed"))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, help="of the inputs; another each time if left out")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a try without a GPU")
    arguments = parser.parse_args()
    if not CUDA and not arguments.tiny:
        parser.error("there is no CUDA device: try it with --tiny")
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    seed = random.SystemRandom().randrange(2**20) if arguments.seed is None else arguments.seed
    report = Report(arguments.out)
    report.found["about"] = about(arguments, seed)
    report.say(json.dumps(report.found["about"]))
    if arguments.only != "speed":
        available = arithmetics_for(DEVICE, torch.float32)
        report.say(f"ways of this device: {', '.join(a.name for a in available)}")
        if CUDA and available[0] != TRITON:
            report.wrong("Triton's kernels do not run on this device")
        for at, case in enumerate(TINY_CASES if arguments.tiny else CASES):
            report.attempt(case.name(), check_head, case, seed + at)
        report.attempt("gradients of the fused head", check_gradients, seed)
        report.attempt("embedding", check_embedding, seed)
        for bf16 in (True, False):
            report.attempt(f"self-checks, bf16={bf16}", check_trainer, bf16, seed)
        report.attempt("synchronisations and launches", count_waits, seed)
    if arguments.only != "correctness":
        for name in arguments.shapes.split(","):
            shape = tiny(SHAPES[name]) if arguments.tiny else SHAPES[name]
            report.attempt(f"speed, {name}", measure, name, shape, arguments.repeats)
    wrong = report.found["wrong"]
    report.say(f"{len(wrong)} wrong" + "".join(f"\n  {text}" for text in wrong))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
