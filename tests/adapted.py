"""Models with adapters or quantised weights in a loop of one's own, and their truth by autograd."""

import copy

import torch
import torch.nn.functional as F

import gradsift as gs
from gradsift.terms import LAYERS
from oracle import store_errors
from tiny import random_instances

N = 8
INSTANCES = random_instances(N, seed=5, n_prompt=2, prefix="")


def batches(size=4):
    for start in range(0, N, size):
        rows = INSTANCES[start : start + size]
        width = max(len(row.input_ids) for row in rows)

        def padded(values, fill, width=width):
            return torch.tensor([list(row) + [fill] * (width - len(row)) for row in values])

        yield {
            "input_ids": padded([row.input_ids for row in rows], 0),
            "labels": padded([row.labels for row in rows], -100),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
            "row": torch.arange(start, start + len(rows)),
        }


def trained(model, lr=0.05):
    """A few updates, so that adapters add something."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(2):
        for batch in batches():
            batch.pop("row")
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def recorded(model, folder, **options):
    with gs.record(model, out=folder, ids="row", sketch_size=64, **options) as seen:
        for batch in batches():
            model(**batch).loss.backward()
    model.zero_grad()
    return seen


def gradients_at(model, table, head, input_ids, labels):
    """Gradients of one row's loss at two layers' plain weights, the second one untied."""
    was_table, was_head = table.weight.requires_grad, head.weight
    head.weight = torch.nn.Parameter(was_head.detach().clone())
    table.weight.requires_grad_(True)
    loss = loss_of(model, input_ids, labels)
    at_table, at_head = torch.autograd.grad(loss, [table.weight, head.weight])
    head.weight = was_head
    table.weight.requires_grad_(was_table)
    return {"embedding": at_table.double(), "lm_head": at_head.double()}, loss.item()


def gradients_at_outputs(model, table, head, input_ids, labels):
    """The same where there is no plain weight: from each layer's inputs and its output's gradient.

    `table` and `head` are modules as the model calls them.
    """
    seen = {}

    def watch(name):
        def hook(module, inputs, output):
            if not output.requires_grad:
                output.requires_grad_(True)
            seen[name] = inputs[0].detach(), output

        return hook

    handles = [table.register_forward_hook(watch("embedding")),
               head.register_forward_hook(watch("lm_head"))]  # fmt: skip
    loss = loss_of(model, input_ids, labels)
    for handle in handles:
        handle.remove()
    (tokens, at_table), (x, z) = seen["embedding"], seen["lm_head"]
    delta_TD, delta_TV = (g[0].double() for g in torch.autograd.grad(loss, [at_table, z]))
    one_hot = F.one_hot(tokens[0], model.config.vocab_size).double()
    if getattr(table, "padding_idx", None) is not None:
        one_hot[:, table.padding_idx] = 0
    gradients = {"embedding": one_hot.T @ delta_TD, "lm_head": delta_TV.T @ x[0].double()}
    return gradients, loss.item()


def loss_of(model, input_ids, labels):
    logits = model(input_ids=torch.tensor([input_ids])).logits[0].double()
    return F.cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=-100)


def worst_error(store, truth_of):
    """The largest relative error of any row's loss and statistics."""
    assert set(store.layers) == set(LAYERS)
    errors = store_errors(store, {row.instance_id: row for row in INSTANCES}, truth_of)
    return max(errors.values())


def in_float64(model):
    """A copy for the truth."""
    return copy.deepcopy(model).double()
