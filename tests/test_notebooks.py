"""The notebooks of the documentation run, on a tiny model in place of the demo's.

`python tests/test_notebooks.py` runs them on the demo's own, and stores what they show.
"""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
MOST_BYTES = 40_000


def code_of(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS, "docs/notebooks: none, and nothing else here would fail"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    """In this process: a kernel would load the libraries once more for each."""
    from tiny import demo_stand_in

    monkeypatch.setenv("GRADSIFT_CACHE_DIR", demo_stand_in(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in code_of(notebook):
        source = "".join(cell["source"])
        exec(compile(source, f"{notebook.name}, {cell['id']}", "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_stored(notebook):
    text = notebook.read_text(encoding="utf-8")
    code = code_of(notebook)
    # In order and whole: nobody has run one cell alone.
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert any(cell["outputs"] for cell in code)
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


if __name__ == "__main__":
    import tempfile

    import nbformat
    from nbclient import NotebookClient

    # And DeepSpeed, where it is installed, does not speak of GPUs.
    os.environ |= {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            where = {"metadata": {"path": folder}}
            NotebookClient(book, resources=where, record_timing=False, timeout=1800).execute()
        for cell in book.cells:
            if cell.cell_type == "code":
                # Progress and notes are for whoever waits.
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
                for one in cell.outputs:
                    if "text" in one:
                        one.text = one.text.replace(f"{folder}/", "")
        book.metadata.language_info = {"name": "python"}
        nbformat.write(book, path)
        print(path.name)
