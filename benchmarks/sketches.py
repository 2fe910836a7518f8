"""Do sketches rank pairs of rows, and rows beside all others, as their gradients do?

Cosines of the gradients of all pairs, and of each row's with the mean direction of the others',
exact and by sketch, at both layers: Spearman's rank correlation, the root mean square error, and
the spread of the exact ones. Beside TensorSketch stands the projection that it replaced, two
Gaussian matrices PᵀGQ.

Usage: python benchmarks/sketches.py DATA [--model demo] [--rows 60] [--max-length 160] [--seeds 3]
"""

import argparse
import random

import torch
from scipy.stats import spearmanr

from gradsift.data.pool import load_pool
from gradsift.data.tokenization import build_instances
from gradsift.gradients.sketch import TensorSketch
from gradsift.training.model import find_model, load_model, load_tokenizer

CPU = torch.device("cpu")
SIZES = (64, 256, 1024)


def factors(model, item):
    """A row's gradients as products: (backprops, inputs) at the head, (tokens, backprops) below."""
    ids_T, labels_T = torch.tensor(item.input_ids), torch.tensor(item.labels)
    embedded = model.get_input_embeddings()(ids_T[None]).detach().requires_grad_(True)
    hidden_TD = model.base_model(inputs_embeds=embedded).last_hidden_state[0]
    response_T = labels_T[1:] != -100
    x_ND = hidden_TD[:-1][response_T]
    logits_NV = model.get_output_embeddings()(x_ND)
    loss = torch.nn.functional.cross_entropy(logits_NV, labels_T[1:][response_T])
    delta_NV, below_1TD = torch.autograd.grad(loss, (logits_NV, embedded))
    return (delta_NV.half(), x_ND.detach()), (ids_T, below_1TD[0])


def head_products(rows):
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, (delta_i, x_i) in enumerate(rows):
        delta_i = delta_i.float()
        for j in range(i, len(rows)):
            delta_j, x_j = rows[j]
            product = ((delta_i @ delta_j.float().T) * (x_i @ x_j.T)).double().sum()
            gram[i, j] = gram[j, i] = product
    return gram


def table_products(rows, n_rows):
    dense = [
        torch.zeros(n_rows, delta.shape[1]).index_add_(0, tokens, delta).to_sparse()
        for tokens, delta in rows
    ]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, gradient in enumerate(dense):
        whole = gradient.to_dense()
        for j in range(i, len(rows)):
            at, values = dense[j].coalesce().indices(), dense[j].coalesce().values()
            gram[i, j] = gram[j, i] = (whole[at[0], at[1]] * values).double().sum()
    return gram


def gaussian(rows, layer, shape, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    left_VK, right_DK = (torch.randn(n, rank, generator=generator) / rank**0.5 for n in shape)
    if layer == "lm_head":
        sketches = [(delta.float() @ left_VK).T @ (x @ right_DK) for delta, x in rows]
    else:
        sketches = [left_VK[tokens].T @ (delta @ right_DK) for tokens, delta in rows]
    return torch.stack([sketch.flatten() for sketch in sketches])


def tensor_sketch(rows, layer, shape, size, seed):
    sketch = TensorSketch.seeded(*shape, size=size, seed=seed, device=CPU)
    sketches = []
    for left, right in rows:
        if layer == "lm_head":
            left_NK, right_NK = sketch.rows(left.float(), 0), sketch.columns(right)
        else:
            left_NK, right_NK = sketch.single_rows(left), sketch.columns(right)
        sketches.append(sketch.convolve(left_NK, right_NK, lambda t: t.sum(0, keepdim=True))[0])
    return torch.stack(sketches)


def cosines(gram):
    norms = gram.diagonal().sqrt()
    upper = torch.ones_like(gram, dtype=torch.bool).triu(1)
    return (gram / norms[:, None] / norms)[upper]


def with_others(gram):
    """Cosine of each row with the mean direction of the others, from inner products."""
    norms = gram.diagonal().sqrt()
    cosine = gram / norms[:, None] / norms
    along = cosine.sum(1) - 1
    return along / (cosine.sum() - 2 * along - 1).sqrt()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    source = find_model(arguments.model)
    tokenizer, model = load_tokenizer(source), load_model(source)
    pool = [row for row in load_pool(arguments.data).rows if row.example is not None]
    pool = random.Random(0).sample(pool, arguments.rows)
    examples = [(row.instance_id, row.example) for row in pool]
    items = build_instances(examples, tokenizer, max_length=arguments.max_length).items
    rows = [factors(model, item) for item in items]
    shape = tuple(model.get_output_embeddings().weight.shape)
    for at, layer in enumerate(("lm_head", "embedding")):
        of_layer = [pair[at] for pair in rows]
        gram = head_products(of_layer) if at == 0 else table_products(of_layer, shape[0])
        measures = {"pairs": cosines, "with others": with_others}
        spread = ", ".join(f"{what} {of(gram).std():.3f}" for what, of in measures.items())
        print(f"{layer}: {len(items)} rows, standard deviations of exact cosines: {spread}")
        methods = [(f"Gaussian {rank}×{rank}", gaussian, rank) for rank in (16, 32)]
        methods += [(f"TensorSketch {size}", tensor_sketch, size) for size in SIZES]
        for name, sketch, size in methods:
            results = {what: [] for what in measures}
            for seed in range(arguments.seeds):
                sketches = sketch(of_layer, layer, shape, size, seed).double()
                for what, of in measures.items():
                    exact, estimated = of(gram), of(sketches @ sketches.T)
                    error = float((estimated - exact).square().mean().sqrt())
                    results[what].append((spearmanr(estimated, exact).statistic, error))
            for what, found in results.items():
                ranks, errors = zip(*found, strict=True)
                print(f"  {name:20} {what:12} rank correlation {min(ranks):.2f} to "
                      f"{max(ranks):.2f}, error {min(errors):.3f} to {max(errors):.3f}",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
