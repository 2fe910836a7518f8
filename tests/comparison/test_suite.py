"""What models are asked is known by its content."""

import json
import shutil

from comparing import compared

TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def task_file(folder, docs):
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "mine.yaml").write_text(TASK.replace("FILE", str(folder / "docs.jsonl")))
    return folder / "mine.yaml"


def test_an_evaluation_is_known_by_what_it_asks_not_by_where_its_files_lie(world, tmp_path):
    found = []
    for at, question in (("here", "ab"), ("there", "ab"), ("other", "xy")):
        folder = tmp_path / at
        folder.mkdir()
        docs = [{"context": question, "choices": ["c", "d"], "answer": 0}]
        task = task_file(folder, docs)
        test = shutil.copy(world / "test.jsonl", folder)
        result = compared(world, test=str(test), arms=("base",), general=(str(task),), name=at)
        found.append(result.made_with["evaluation"]["content"])
    assert found[0] == found[1] != found[2]
