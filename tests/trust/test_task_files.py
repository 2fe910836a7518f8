"""Task files of lm-eval from a stranger: ways to run a shell command, each tried."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from jinja2 import Environment
from lm_eval import utils
from lm_eval.config.task import FewshotConfig, TaskConfig

from gradsift.comparison.suite import _load_tasks, _task_texts
from gradsift.config import EvaluationConfig
from gradsift.errors import GradsiftError
from gradsift.evaluation import task_files
from gradsift.evaluation.benchmarks import load_tasks, questions, score_tasks
from gradsift.evaluation.task_files import sandboxed
from tiny import tiny_llama, tiny_tokenizer

TASK = {
    "task": "mine",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}
DOC = {"context": "ab", "choices": ["c", "d"], "answer": 0}
# `touch MARK`, by names that Python's objects give away.
RUN = "{{ %s.__globals__['os'].popen('touch MARK').read() }}"
TEMPLATES = [
    RUN % "lipsum",
    RUN % "cycler.__init__",
    RUN % "joiner.__init__",
    RUN % "namespace.__init__",
    "{{ (lipsum|attr('__globals__'))['os'].popen('touch MARK').read() }}",
    "{{ self.__init__.__globals__['__builtins__']['__import__']('os').system('touch MARK') }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{% if c.__name__ == 'Popen' %}"
    "{{ c(['touch', 'MARK']).wait() }}{% endif %}{% endfor %}",
    "{{ ['a']|map(attribute='__class__.__base__')|list }}"
    "{{ lipsum['__glo' + 'bals__']['os'].system('touch MARK') }}",
    "{{ '{0.__class__}'.format(lipsum) }}{{ lipsum.__globals__.os.system('touch MARK') }}",
]
KEYS = [
    {"doc_to_text": None},
    {"doc_to_target": None},
    {"doc_to_choice": None},
    {"description": None},
    {"gen_prefix": None},
    {
        "num_fewshot": 1,
        "fewshot_config": {"samples": [DOC, {**DOC, "context": "x"}], "doc_to_text": None},
    },
    {
        "num_fewshot": 1,
        "fewshot_config": {"samples": [DOC, {**DOC, "context": "x"}], "gen_prefix": None},
    },
]


def task_file(folder, task, docs=(DOC, DOC)):
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    whole = {"dataset_kwargs": {"data_files": {"test": str(data)}}, **TASK, **task}
    path = folder / "mine.yaml"
    path.write_text(json.dumps(whole))
    return path


def filled(value, template):
    if isinstance(value, dict):
        return {key: filled(one, template) for key, one in value.items()}
    return template if value is None else value


def ask(path, *, trust_code=False):
    """Go the whole way of compare: load, write the questions, score."""
    tasks = load_tasks([], [path], trust_code=trust_code)
    for task in tasks["tasks"].values():
        questions(task, None)
    return score_tasks(tiny_llama(seed=4).eval(), tiny_tokenizer(), tasks)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_nothing(tmp_path, template):
    mark = tmp_path / "it-ran"
    template = template.replace("MARK", str(mark))
    # As lm-eval renders it alone.
    utils.apply_template(template, {})
    assert mark.exists()
    mark.unlink()
    path = task_file(tmp_path, {"doc_to_text": template})
    with pytest.raises(GradsiftError, match=r"`general` mine: .*does more than write text"):
        ask(path)
    assert not mark.exists()


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(key))
def test_a_template_runs_nothing_whatever_it_is_for(tmp_path, key, monkeypatch):
    mark = tmp_path / "it-ran"
    path = task_file(tmp_path, filled(key, TEMPLATES[0].replace("MARK", str(mark))))
    with pytest.raises(GradsiftError, match=r"`general` mine: .*does more than write text"):
        ask(path)
    assert not mark.exists()
    # Without the sandbox it would.
    monkeypatch.setattr(task_files._Sandbox, "like_lm_eval", lambda: utils.env)
    try:
        ask(path)
    except GradsiftError:  # No number, no list: lm-eval takes it for the answer.
        assert "doc_to_choice" in key
    assert mark.exists()


def test_a_template_runs_nothing_in_a_dry_run(tmp_path):
    mark = tmp_path / "it-ran"
    # Not for the first item, which is rendered while the task is loaded.
    late = "{% if context == 'late' %}" + TEMPLATES[0].replace("MARK", str(mark)) + "{% endif %}x"
    path = task_file(tmp_path, {"doc_to_text": late}, [DOC, {**DOC, "context": "late"}])
    config = EvaluationConfig(general=(str(path),))
    tasks = _load_tasks(config)
    with pytest.raises(GradsiftError, match=r"`general` mine: .*does more than write text"):
        _task_texts(tasks, config)
    assert not mark.exists()


class Picture:
    def __init__(self, path):
        self.path = path

    def save(self):
        self.path.touch()


def test_a_template_saves_no_picture(tmp_path):
    """An item of a table may hold one, as an object that can write itself anywhere."""
    mark = tmp_path / "written"
    doc = {"picture": Picture(mark)}
    utils.apply_template("{{ picture.save() }}", doc)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(GradsiftError, match="does more than write text"), sandboxed():
        utils.apply_template("{{ picture.save() }}", doc)
    assert not mark.exists()


def test_templates_say_what_they_say_without_the_sandbox():
    doc = {"a": "x y", "n": [1, 2], "d": {"k": 1}}
    template = (
        "{{a.split(' ')[0].upper()}} {{n.index(2)}} {{d.items()|list}} {{'%s-{}'.format(a)}}\n"
        "{% set all = [] %}{% for i in range(2) %}{{ all.append(i) }}{{ loop.cycle('p', 'q') }}"
        "{% endfor %}{{ all }} {{ namespace(x=1).x }} {{ dict(a=1) }}"
        "{{ a|regex_replace('x', 'z') }}"
        "{% macro m(x) %}<{{x}}>{% endmacro %}{{ m(1) }} {{ cycler('a', 'b').next() }}\n"
    )
    alone = utils.apply_template(template, doc)
    with sandboxed():
        assert utils.apply_template(template, doc) == alone
        with pytest.raises(Exception, match="undefined"):
            utils.apply_template("{{ missing }}", doc)


def test_lm_eval_is_as_it_is_thought_to_be():
    """What the sandbox and the checks of keys rest on."""
    assert type(utils.env) is Environment
    assert utils.env.filters.keys() == task_files._Sandbox.like_lm_eval().filters.keys()
    assert utils.env.globals.keys() == task_files._Sandbox.like_lm_eval().globals.keys()
    with sandboxed():
        assert type(utils.env) is not Environment
    assert type(utils.env) is Environment
    code = {f.name for f in fields(TaskConfig) if "Callable" in str(f.type)}
    templates = {"doc_to_text", "doc_to_target", "doc_to_choice", "doc_to_image", "doc_to_audio"}
    # Each of these is refused if a file says it; templates are functions only if a tag makes them.
    assert code - templates == {"custom_dataset", "process_docs", "process_results"}
    of_examples = {f.name for f in fields(FewshotConfig) if "Callable" in str(f.type)}
    assert of_examples - templates == {"process_docs", "samples"}
    assert {f.name for f in fields(TaskConfig)} >= {"unsafe_code", "use_prompt", "dataset_path"}


FILES = {
    "function": "task: mine\nprocess_docs: !function boom.run\n",
    "function spelt otherwise": "task: mine\nprocess_docs: !f%75nction boom.run\n",
    "function by a handle": "%TAG !e! !func\n---\ntask: mine\nprocess_docs: !e!tion boom.run\n",
    "function, verbatim": "task: mine\ndoc_to_text: !<!function> boom.run\n",
    "function in a metric": "task: mine\nmetric_list: [{metric: !function boom.run}]\n",
    "function in a filter": "task: mine\nfilter_list: [{filter: [{function: !function boom.run}]}]",
    "function in examples": "task: mine\nfewshot_config: {samples: !function boom.run}\n",
    "a class": "task: mine\nclass: !function boom.Task\n",
    "an object": "task: mine\nmetadata: !!python/object/apply:os.system ['touch MARK']\n",
    "an include": "task: mine\ninclude: other.yaml\n",
    "an include in a group": "group: g\ntask: [{task: a, include: other.yaml}]\n",
    "a metric of evaluate": "task: mine\nmetric_list: [{metric: 'FOLDER/boom.py'}]\n",
    "a metric asked of evaluate": "task: mine\nmetric_list: [{metric: acc, hf_evaluate: true}]\n",
    "a prompt file": "task: mine\nuse_prompt: 'FOLDER/other.yaml:a'\n",
    "a prompt of promptsource": "task: mine\nuse_prompt: promptsource:a\n",
    "code for its data": "task: mine\ncustom_dataset: boom.run\n",
    "code of answers": "task: mine\nunsafe_code: true\n",
    "a pickle": "task: mine\ndataset_path: pandas\ndataset_kwargs: {data_files: FOLDER/a.pkl}\n",
    **{
        f"builder {name}": f"task: mine\ndataset_path: {name}\n"
        for name in ("cache", "eval", "sql", "spark", "generator", "webdataset", "hdf5")
    },
    "a script": "task: mine\ndataset_path: 'FOLDER/boom.py'\n",
    "a folder with a script": "task: mine\ndataset_path: 'FOLDER/scripted'\n",
    "a folder of pickles": "task: mine\ndataset_path: 'FOLDER/pickles'\n",
    "a folder of archives": "task: mine\ndataset_path: 'FOLDER/archives'\n",
    "a folder whose card leads elsewhere": "task: mine\ndataset_path: 'FOLDER/led'\n",
    "a file system of files": "task: mine\ndataset_path: json\n"
    "dataset_kwargs: {data_files: 'reference://a::file://FOLDER/refs.json'}\n",
    "a cache elsewhere": (
        "task: mine\ndataset_path: json\ndataset_kwargs: {cache_dir: 'FOLDER/c'}\n"
    ),
    "storage": "task: mine\ndataset_path: json\ndataset_kwargs: {storage_options: {}}\n",
    "inside a group": "group: g\ntask: [{task: a, dataset_path: pandas}]\n",
    "inside a group of a group": "group: g\ntask: [{group: h, task: [{task: a, class: x}]}]\n",
    "for all of a group": "group: g\ndataset_path: pandas\ntask: [{task: a}]\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_task_file_runs_nothing(tmp_path, name):
    mark = tmp_path / "it-ran"
    run = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef run(*_, **__): return []\n"
    (tmp_path / "boom.py").write_text(run)
    (tmp_path / "other.yaml").write_text("process_docs: !function boom.run\n")
    for folder, file in (("scripted", "scripted.py"), ("pickles", "a.pkl"), ("archives", "a.tar")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(run)
    (tmp_path / "led").mkdir()
    (tmp_path / "led" / "a.jsonl").write_text('{"a": 1}\n')
    card = "---\nconfigs: [{config_name: a, data_files: 'reference://x::file:///y'}]\n---\n"
    (tmp_path / "led" / "README.md").write_text(card)
    path = tmp_path / "mine.yaml"
    path.write_text(FILES[name].replace("MARK", str(mark)).replace("FOLDER", str(tmp_path)))
    with pytest.raises(GradsiftError) as error:
        load_tasks([], [path])
    assert str(path) in str(error.value)
    assert "cannot be loaded" not in str(error.value)
    assert not mark.exists()
    assert not (tmp_path / "c").exists()


def test_trusted_code_runs(tmp_path):
    (tmp_path / "boom.py").write_text("def run(docs): return docs\n")
    path = task_file(tmp_path, {})
    path.write_text(path.read_text()[:-1] + ', "process_docs": !function boom.run}')
    assert "mine" in ask(path, trust_code=True)


def test_a_group_of_tasks_of_its_own_is_asked(tmp_path):
    path = task_file(tmp_path, {})
    (one,) = [json.loads(path.read_text())]
    path.write_text(
        json.dumps({"group": "g", "task": [{**one, "task": "a"}, {**one, "task": "b"}]})
    )
    assert sorted(ask(path)) == ["g::a", "g::b"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_folder_of_plain_data_is_read(tmp_path, suffix):
    data = tmp_path / "rows"
    data.mkdir()
    lines = {"jsonl": '{"q": "ab", "a": 0}\n' * 2, "csv": "q,a\nab,0\ncd,1\n"}
    (data / f"test.{suffix}").write_text(lines[suffix])
    task = {"dataset_path": str(data), "dataset_kwargs": {}, "doc_to_text": "{{q}}"}
    task |= {"doc_to_target": "{{a}}", "doc_to_choice": ["x", "y"]}
    assert len(ask(task_file(tmp_path, task))["mine"].scores) == 2
