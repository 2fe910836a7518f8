from __future__ import annotations

import json
import random

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import MambaConfig, MambaForCausalLM

from gradsift.errors import GradsiftError
from gradsift.evaluation import shared_prefix
from gradsift.evaluation.benchmarks import SANITY_FILE, load_tasks, score_tasks
from gradsift.evaluation.shared_prefix import LIKE_LM_EVAL, SharedPrefixLM
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def requests_of(contexts, continuations):
    return [(None, list(c), list(t)) for c in contexts for t in continuations]


@pytest.fixture
def model():
    return tiny_llama(seed=4).eval()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_shared_prefixes_change_nothing(make):
    model = make(seed=4).eval()
    # Large enough for positions to matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    tokenizer = tiny_tokenizer()
    contexts = [[6], [7, 8, 9], list(range(10, 40)), [5, 6, 7, 8]]
    continuations = [[9], [10, 11, 12], [13, 14], list(range(50, 75)), [9]]
    requests = requests_of(contexts, continuations)
    # One whose likeliest next token is what is asked for.
    best = int(model(torch.tensor([[7, 8, 9]])).logits[0, -1].argmax())
    requests.append((None, [7, 8, 9], [best]))
    # Here only the first token is.
    requests.append((None, [7, 8, 9], [best, (best + 1) % 200]))
    ours = SharedPrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    found = ours._loglikelihood_tokens(requests)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    assert ours.method == "shared prefixes"
    assert [f for f, _ in found] == pytest.approx([e for e, _ in expected], abs=1e-3)
    assert [g for _, g in found] == [g for _, g in expected]
    assert [g for _, g in found[-2:]] == [True, False]


def test_batches_change_nothing(model, monkeypatch):
    requests = requests_of([[6, 7], [8, 9, 10]], [[9], [10, 11, 12], [13, 14]])
    lm = SharedPrefixLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3)
    together = lm._loglikelihood_tokens(requests)
    monkeypatch.setattr(shared_prefix, "TOKENS_IN_A_BATCH", 1)
    monkeypatch.setattr(shared_prefix, "MOST_CONTINUATIONS", 1)
    apart = lm._loglikelihood_tokens(requests)
    assert [x for x, _ in apart] == pytest.approx([x for x, _ in together], abs=1e-4)


def test_a_cache_that_gives_other_results_is_not_used(model, monkeypatch):
    right = SharedPrefixLM._score
    requests = requests_of([[6, 7], [8, 9, 10]], [[9], [10, 11, 12]])
    lm = SharedPrefixLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3)

    def wrong(self, *arguments):
        return [(value + 0.01, greedy) for value, greedy in right(self, *arguments)]

    monkeypatch.setattr(SharedPrefixLM, "_score", wrong)
    found = lm._loglikelihood_tokens(requests)
    assert lm.method == LIKE_LM_EVAL
    theirs = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-6)


def test_a_recurrent_model_is_scored_as_lm_eval_does_it():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=262, hidden_size=16, state_size=4, num_hidden_layers=2)
    lm = SharedPrefixLM(
        pretrained=MambaForCausalLM(config).eval(), tokenizer=tiny_tokenizer(), batch_size=3
    )
    lm._loglikelihood_tokens(requests_of([[6, 7], [8, 9, 10]], [[9], [10, 11, 12]]))
    assert lm.method == LIKE_LM_EVAL


def test_a_task_file_is_scored_item_by_item(model, tmp_path):
    docs = [{"context": "ab", "choices": ["c", "dd", "e"], "answer": i % 3} for i in range(6)]
    path = task_file(tmp_path, docs)
    tasks = load_tasks([], [path])
    found = score_tasks(model, tiny_tokenizer(), tasks, limit=5)["mine"]
    ids = tiny_tokenizer()
    totals = [total(model, ids, "ab", choice) for choice in docs[0]["choices"]]
    best = totals.index(max(totals))
    assert found.metric == "acc"
    # Nothing is shown first.
    assert [task.get_config("num_fewshot") for task in tasks["tasks"].values()] == [0]
    assert found.scores == tuple(float(doc["answer"] == best) for doc in docs[:5])
    assert sum(found.scores) in (1, 2)
    other = task_file(tmp_path, [{**docs[0], "context": "xy"}, *docs[1:]])
    again = score_tasks(model, tiny_tokenizer(), load_tasks([], [other]), limit=5)
    assert again["mine"].items != found.items


FILTERS = """
filter_list:
  - name: first
    filter:
      - function: take_first
  - name: again
    filter:
      - function: take_first
"""


def test_of_several_filters_of_a_task_the_first_counts(model, tmp_path):
    path = task_file(tmp_path, [{"context": "ab", "choices": ["c", "d"], "answer": 0}] * 3)
    path.write_text(path.read_text() + FILTERS)
    found = score_tasks(model, tiny_tokenizer(), load_tasks([], [path]))
    assert len(found["mine"].scores) == 3


def test_the_sanity_benchmark_is_a_task(model):
    tasks = load_tasks(["sanity"])
    found = score_tasks(model, tiny_tokenizer(), tasks)["sanity"]
    assert len(found.scores) == 120


def test_the_sanity_benchmark_is_sound():
    items = [json.loads(line) for line in SANITY_FILE.read_text(encoding="utf-8").splitlines()]
    assert len(items) == len({item["id"] for item in items}) == 120
    assert len({(item["context"], *sorted(item["choices"])) for item in items}) == 120
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"]) >= 2
        assert 0 <= item["answer"] < len(item["choices"])
    # The right answer stands at no place more often than chance would have it by far.
    four = [item["answer"] for item in items if len(item["choices"]) == 4]
    assert max(four.count(at) for at in range(4)) < 0.4 * len(four)
    kinds = {item["kind"] for item in items}
    assert kinds == {"everyday", "science", "arithmetic", "grammar", "common sense"}


@pytest.mark.parametrize(
    "line",
    ["process_docs: !function boom.run", "unsafe_code: true", "custom_dataset: boom.run"],
)
def test_code_in_a_task_file_does_not_run(tmp_path, line):
    path = tmp_path / "evil.yaml"
    path.write_text(f"task: evil\n{line}\n")
    (tmp_path / "boom.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match="set `trust_remote_code`"):
        load_tasks([], [path])


@pytest.mark.parametrize("head", ["include: other.yaml", "task:\n  - include: other.yaml"])
def test_code_behind_an_include_does_not_run(tmp_path, head):
    path = tmp_path / "innocent.yaml"
    path.write_text(head + "\n" + ("" if head.startswith("task") else "task: innocent\n"))
    (tmp_path / "other.yaml").write_text("process_docs: !function boom.run\n")
    (tmp_path / "boom.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match="includes another file"):
        load_tasks([], [path])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- a\n", "expected an lm-eval task file"), (None, "cannot be read")],
)
def test_a_bad_task_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_tasks([], [path])


def test_what_it_was_called_before_is_answered_with_its_name():
    with pytest.raises(GradsiftError, match="probe is now called sanity"):
        load_tasks(["probe"])


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="no_such_task_anywhere: lm-eval has no such task"):
        load_tasks(["no_such_task_anywhere"])


def task_file(folder, docs):
    data = folder / f"{abs(hash(str(docs)))}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    path = folder / "mine.yaml"
    path.write_text(TASK.format(name="mine", file=data))
    return path


def total(model, tokenizer, context, choice):
    ids = tokenizer(context + choice, add_special_tokens=False).input_ids
    n = len(tokenizer(choice, add_special_tokens=False).input_ids)
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
    return sum(float(log_probs[at - 1, ids[at]]) for at in range(len(ids) - n, len(ids)))


def test_batches_hold_every_request_once_with_little_padding():
    rng = random.Random(0)
    lengths = [(rng.randint(1, 80), rng.randint(1, 60)) for _ in range(150)]
    requests = [
        (None, [at] + [7] * (n_context - 1), [9] * rng.randint(1, n_longest))
        for at, (n_context, n_longest) in enumerate(lengths)
        for _ in range(4)
    ]
    batches = shared_prefix._batches(shared_prefix._items(requests), requests)
    held = [i for batch in batches for item in batch for i in item.requests]
    assert sorted(held) == list(range(len(requests)))
    read = padded = 0
    for batch in batches:
        contexts = [len(item.context) for item in batch]
        tokens = [requests[i][2] for item in batch for i in item.requests]
        groups = shared_prefix._of_like_length(tokens)
        assert sorted(at for group in groups for at in group) == list(range(len(tokens)))
        read += sum(contexts) + sum(len(one) - 1 for one in tokens)
        padded += max(contexts) * len(contexts)
        padded += sum((len(tokens[group[0]]) - 1) * len(group) for group in groups)
    assert padded < 1.15 * read
