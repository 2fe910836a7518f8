"""Prepare what `learn_and_forget.py` trains and tests on: rows of three domains, general tasks.

Each domain gets N training rows and all test rows, unless M are asked for, drawn with a seed among
those whose prompt is short enough; every response, of training and of test, is cut after so many
tokens. The domain of a row's source stays with it. The general tasks are the files' rows, or the
first of each, as lm-eval tasks.

Usage:
    python experiments/domain_data.py OUT --data DIR --bench DIR
"""

import argparse
import json
import random
from pathlib import Path

from gradsift.training.model import find_model, load_tokenizer

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
{fields}
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
CHOICES = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"'
ONE_WORD = 'doc_to_target: "{{target}}"'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of DOMAIN/train.jsonl")
    parser.add_argument("--bench", type=Path, required=True, help="folder of TASK.jsonl")
    parser.add_argument("--domains", nargs="+", default=["medicine", "law", "finance"])
    parser.add_argument("--train-rows", type=int, default=600)
    parser.add_argument("--test-rows", type=int, help="of each domain; all if not given")
    parser.add_argument("--bench-rows", type=int, help="of each task; all if not given")
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--general-words", type=int, default=6000)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(find_model(arguments.model))
    for domain in arguments.domains:
        folder = arguments.out / domain
        folder.mkdir(parents=True, exist_ok=True)
        for split, n in (("train", arguments.train_rows), ("test", arguments.test_rows)):
            rows = read(arguments.data / domain / f"{split}.jsonl")
            rows = [shortened(row, tokenizer, arguments) for row in rows]
            rows = [row for row in rows if row is not None]
            rows = random.Random(arguments.seed).sample(rows, len(rows) if n is None else n)
            write(folder / f"{split}.jsonl", rows)
            n_tokens = [len(tokenizer(row["prompt"] + row["response"]).input_ids) for row in rows]
            print(domain, split, len(rows), "rows, mean tokens", sum(n_tokens) / len(rows))
    general = arguments.out / "general"
    general.mkdir(exist_ok=True)
    for file in sorted(arguments.bench.glob("*.jsonl")):
        rows = read(file)[: arguments.bench_rows]
        write(general / file.name, rows)
        kind, fields = (
            ("multiple_choice", CHOICES) if "choices" in rows[0] else ("loglikelihood", ONE_WORD)
        )
        text = TASK.format(
            name=file.stem, file=(general / file.name).resolve(), kind=kind, fields=fields
        )
        (general / f"{file.stem}.yaml").write_text(text)
    text = next(iter(sorted(arguments.bench.glob("*.txt")))).read_text().split(" ")
    (general / "text.txt").write_text(" ".join(text[: arguments.general_words]))


def shortened(row, tokenizer, arguments):
    prompt = row["prompt"]
    if context := row.get("meta", {}).get("context"):
        prompt = f"{context}\n\n{prompt}"
    if len(tokenizer(prompt).input_ids) > arguments.prompt_tokens:
        return None
    tokens = tokenizer(row["response"]).input_ids[: arguments.response_tokens]
    response = tokenizer.decode(tokens).strip()
    return {"id": row["id"], "prompt": prompt, "response": response, "source": row["source"]}


def read(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
