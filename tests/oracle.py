"""The obviously correct way: a batch of one, and backward(). Nothing of ours is imported."""

import torch
import torch.nn.functional as F


def gradients_of(model, input_ids, labels):
    """Gradients of one row's mean response loss at the embedding and at the head, and the loss.

    The head gets a copy of its weight, so that tied weights keep their two contributions apart.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied_weight, was_trained = head.weight, table.weight.requires_grad
    head.weight = torch.nn.Parameter(tied_weight.detach().clone())
    table.weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([input_ids])).logits[0].to(torch.float64)
    loss = F.cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=-100)
    at_table, at_head = torch.autograd.grad(loss, [table.weight, head.weight])
    head.weight = tied_weight
    table.weight.requires_grad_(was_trained)
    return {"embedding": at_table.double(), "lm_head": at_head.double()}, loss.item()


def statistics_of(gradient):
    """The six statistics over all entries of a gradient that is at hand."""
    return {
        "max": gradient.max(),
        "min": gradient.min(),
        "mean": gradient.mean(),
        "mean_abs": gradient.abs().mean(),
        "std": gradient.std(correction=0),
        "l2_norm": gradient.norm(),
    }


def relative_error(got, want, companion):
    """Error of one statistic; `companion` is the scale where the statistic itself is about zero."""
    return abs(float(got) - float(want)) / max(abs(float(want)), abs(float(companion)), 1e-300)


def store_errors(store, rows, truth_of):
    """Relative errors of everything that a store says of each row, by row, layer and statistic.

    `rows` are instances by the names that the store has for them; `truth_of` gives the gradients
    and the loss of a row's tokens and labels.
    """
    assert len(store.instance_ids) == len(rows)
    assert set(store.instance_ids) == set(rows)
    errors = {}
    for at, key in enumerate(store.instance_ids):
        truth, loss = truth_of(rows[key].input_ids, rows[key].labels)
        errors[key, "loss"] = relative_error(store.loss[at], loss, 0)
        for layer in store.layers:
            want = statistics_of(truth[layer])
            for name, value in want.items():
                companion = want["mean_abs"] if name == "mean" else 0
                got = store.statistics[layer][name][at]
                errors[key, layer, name] = relative_error(got, value, companion)
    return errors


def assert_store_is_autograd(store, rows, model, tolerance=1e-5):
    """Every statistic of every row equals batch-of-one autograd."""
    errors = store_errors(store, rows, lambda *row: gradients_of(model, *row))
    wrong = {key: error for key, error in errors.items() if not error < tolerance}
    assert not wrong
