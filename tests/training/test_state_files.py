"""State in safetensors comes back as it was, and nothing but plain values goes in."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gradsift.training.state_files import NotPlainError, load_state, save_state


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.is_contiguous()
        assert bits(a) == bits(b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


STATES = {
    "empty": {},
    "values": {"a": None, "b": True, "c": 1, "d": 0.1 + 0.2, "e": "é", "f": float("inf")},
    "not a number": [float("nan")],
    "keys": {0: {1: "a"}, "1": {}, None: 2},
    "nests": [(1, [2, (3,)], {"x": ()}), [], {"tensor": 1}, {"dict": {"list": []}}],
    "tensors": {"state": {0: {"step": torch.tensor(3.0), "m": torch.randn(3, 2)}}},
    "strided": torch.arange(6.0).reshape(2, 3).t(),
    "bytes": {"absmax": torch.randn(2).bfloat16(), "state1": torch.arange(4, dtype=torch.uint8)},
    "nothing in it": [torch.zeros(0, 3), torch.zeros(0, 3)],
    "numpy": np.random.RandomState(0).get_state(),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back_as_it_was(tmp_path, name):
    save_state(tmp_path / "file", STATES[name])
    assert_same(load_state(tmp_path / "file"), STATES[name])


def test_a_tensor_that_is_there_twice_is_stored_once(tmp_path):
    table = torch.randn(256)
    save_state(tmp_path / "file", {0: {"q": table}, 1: {"q": table, "half": table[:128]}})
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert sorted(file.offset_keys()) == ["/0/q", "/1/half"]
    found = load_state(tmp_path / "file")
    assert found[0]["q"] is found[1]["q"]
    assert_same(found[1]["half"], table[:128].clone())


class Projector:
    pass


@pytest.mark.parametrize(
    "state",
    [
        {"a": [Projector()]},
        {(1, 2): 3},
        functools.partial(print),
        torch.eye(2).to_sparse(),
        torch.eye(2).as_subclass(type("Sharded", (torch.Tensor,), {})),
        np.array([Projector()]),
        {1, 2},
    ],
    ids=["object", "key", "call", "sparse", "subclass", "objects", "set"],
)
def test_what_is_not_plain_is_refused(tmp_path, state):
    with pytest.raises(NotPlainError):
        save_state(tmp_path / "file", state)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("tree", [{"a": 1}, {"tensor": "x"}, {"dict": [1]}, {}, None])
def test_a_file_that_is_none_of_ours_is_an_ordinary_error(tmp_path, tree):
    save_file({}, tmp_path / "file", metadata=None if tree is None else {"state": json.dumps(tree)})
    with pytest.raises((KeyError, TypeError, ValueError)):
        load_state(tmp_path / "file")
