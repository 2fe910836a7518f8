import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from former import make_former_store, write_plain_json
from gradsift.errors import GradsiftError
from gradsift.store.manifest import MANIFEST_NAME, PARTS_FOLDER, Manifest, load_manifest
from gradsift.store.reader import read_store
from gradsift.store.writer import StoreWriter
from gradsift.terms import LAYERS, STATISTICS

WIDTH, SKETCH = 3, 4


def manifest(n_instances=4, **identity):
    return Manifest({"model": "m1", "seed": 0, **identity}, {"host": "here"}, n_instances)


def writer(folder, **changes):
    return StoreWriter(folder, manifest(**changes), content_width=WIDTH, sketch_size=SKETCH)


def records(*names, status="ok"):
    rows = []
    for name in names:
        value = float(int(name[1:]))
        for layer in LAYERS:
            rows.append(
                {
                    "instance_id": name,
                    "layer": layer,
                    "step": int(value) // 2,
                    "loss": value + 0.5,
                    "el2n": value + 0.25,
                    "n_response_tokens": int(value) + 1,
                    **{s: value + i / 10 for i, s in enumerate(STATISTICS)},
                    "status": status,
                    "content_features": [value] * WIDTH if layer == "lm_head" else None,
                    "sketch": [value + (layer == "lm_head")] * SKETCH,
                }
            )
    return rows


def fill(folder):
    with writer(folder) as w:
        w.append(records("r3", "r1"), last_step=1, about={"seconds": 1.0})
        w.append(records("r2", "r4"), last_step=2, about={"seconds": 1.5}, complete=True)


def test_what_is_written_is_read(tmp_path):
    fill(tmp_path)
    store = read_store(str(tmp_path))
    assert store.instance_ids == ("r1", "r2", "r3", "r4")
    np.testing.assert_array_equal(store.loss, [1.5, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(store.el2n, [1.25, 2.25, 3.25, 4.25])
    np.testing.assert_array_equal(store.n_response_tokens, [2, 3, 4, 5])
    np.testing.assert_allclose(store.statistics["embedding"]["min"], [1.1, 2.1, 3.1, 4.1])
    np.testing.assert_array_equal(store.content_ND, np.repeat([[1], [2], [3], [4]], WIDTH, 1))
    np.testing.assert_array_equal(store.sketches["lm_head"][:, 0], [2, 3, 4, 5])
    np.testing.assert_array_equal(store.sketches["embedding"][:, 0], [1, 2, 3, 4])
    assert store.finite.all()
    assert store.manifest.about == {"host": "here", "seconds": 1.5}


def test_a_row_that_is_not_finite_in_either_layer_is_marked(tmp_path):
    rows = records("r1", "r2")
    rows[2] |= {"status": "non_finite", "max": float("nan")}
    with writer(tmp_path, n_instances=2) as w:
        w.append(rows, last_step=1, about={}, complete=True)
    assert read_store(tmp_path).finite.tolist() == [True, False]


def test_resuming_goes_on_after_the_last_part_and_drops_leftovers(tmp_path):
    with writer(tmp_path) as w:
        w.append(records("r3", "r1"), last_step=1, about={"seconds": 1.0})
    leftover = tmp_path / PARTS_FOLDER / "part-00001.parquet"
    leftover.write_bytes(b"half a part")
    with writer(tmp_path) as w:
        assert not leftover.exists()
        assert w.recorded_ids() == {"r1", "r3"}
        w.append(records("r2", "r4"), last_step=2, about={}, complete=True)
    assert read_store(tmp_path).instance_ids == ("r1", "r2", "r3", "r4")


def test_parts_after_the_checkpoint_are_forgotten(tmp_path):
    with writer(tmp_path) as w:
        w.append(records("r3", "r1"), last_step=1, about={"seconds": 1.0})
        w.append(records("r2", "r4"), last_step=2, about={})
        w.keep_until(1)
        assert w.recorded_ids() == {"r1", "r3"}
        assert [p.name for p in (tmp_path / PARTS_FOLDER).iterdir()] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "m2"}, "model: the store has 'm1', now it is 'm2'"),
        ({"seed": 1}, "seed: the store has 0, now it is 1"),
        ({"dtype": "float32"}, "dtype: the store has None, now it is 'float32'"),
    ],
)
def test_a_store_with_other_settings_is_refused_with_both_values(tmp_path, change, message):
    fill(tmp_path)
    with pytest.raises(ValueError, match=message), writer(tmp_path, **change):
        pass


def test_another_schema_version_is_refused(tmp_path):
    fill(tmp_path)
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    write_plain_json(tmp_path / MANIFEST_NAME, content | {"schema_version": 99})
    with pytest.raises(GradsiftError, match="schema version 99, this gradsift reads 3 and 4"):
        read_store(tmp_path)


FORMER = {"when": "during", "preliminary": 0.5, "sft": {"learning_rate": 1e-5}}
TODAY = {"record_at": "during", "warmup_fraction": 0.5, "sft": {"learning_rate": 1e-5}}


def make_former(folder):
    """Turn a store into what schema version 3 wrote."""
    identity = {"model": "m1", "seed": 0} | FORMER
    about = {"host": "here", "self_check": {"path": "fused", "n_rows": 2}}
    make_former_store(folder, lambda manifest: manifest | {"identity": identity, "about": about})


def test_a_store_of_schema_version_3_is_read_under_the_names_of_today(tmp_path):
    fill(tmp_path / "now")
    fill(tmp_path / "former")
    make_former(tmp_path / "former")
    now, former = read_store(tmp_path / "now"), read_store(tmp_path / "former")
    np.testing.assert_array_equal(former.el2n, now.el2n)
    np.testing.assert_array_equal(former.loss, now.loss)
    np.testing.assert_array_equal(former.content_ND, now.content_ND)
    for layer in LAYERS:
        np.testing.assert_array_equal(former.sketches[layer], now.sketches[layer])
        for name in STATISTICS:
            np.testing.assert_array_equal(
                former.statistics[layer][name], now.statistics[layer][name]
            )
    assert former.manifest.identity == {"model": "m1", "seed": 0, **TODAY}
    assert former.manifest.about["self_check"] == {"method": "fused", "n_rows": 2}


def test_a_capture_that_schema_version_3_began_is_resumed(tmp_path):
    with writer(tmp_path, **TODAY) as w:
        w.append(records("r3", "r1"), last_step=1, about={})
    make_former(tmp_path)
    with (
        pytest.raises(GradsiftError, match=r"warmup_fraction: the store has 0\.5, now"),
        writer(tmp_path, **TODAY | {"warmup_fraction": 1.0}),
    ):
        pass
    with writer(tmp_path, **TODAY) as w:
        assert w.recorded_ids() == {"r1", "r3"}
        w.append(records("r2", "r4"), last_step=2, about={}, complete=True)
    store = read_store(tmp_path)
    np.testing.assert_array_equal(store.el2n, [1.25, 2.25, 3.25, 4.25])
    assert store.manifest.schema_version == 4


def test_a_second_writer_is_refused(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from store.test_store import writer\n"
        "writer(Path(sys.argv[1])).__enter__()"
    )
    with writer(tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), "tests"], capture_output=True, text=True
        )
    assert "another gradsift is writing here" in other.stderr
    with writer(tmp_path):
        pass  # free again


def damage(folder):
    path = folder / PARTS_FOLDER / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(folder):
    (folder / PARTS_FOLDER / "part-00001.parquet").unlink()


def unfinish(folder):
    replace(load_manifest(folder), complete=False).save(folder)


def break_manifest(folder):
    (folder / MANIFEST_NAME).write_text('{"identity": ')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "changed or damaged"),
        (remove, r"part-00001\.parquet: this part of the gradient store is missing"),
        (unfinish, "not finished \\(4 of 4 instances\\)"),
        (break_manifest, r"manifest\.json: damaged or changed"),
    ],
)
def test_a_store_that_is_not_whole_is_refused(tmp_path, harm, message):
    fill(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_store(tmp_path)


def test_no_store_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="gradsift capture"):
        read_store(tmp_path)


def test_finishing_with_records_missing_is_our_error(tmp_path):
    with (
        writer(tmp_path) as w,
        pytest.raises(AssertionError, match="1 instances recorded, 4 expected"),
    ):
        w.append(records("r1"), last_step=1, about={}, complete=True)


def test_reading_does_not_import_torch():
    code = "import sys, gradsift.store.reader; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
