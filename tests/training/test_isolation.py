"""Whether a model lets the rows of a packed batch see each other."""

from gradsift.training.isolation import isolates_packed_rows
from gradsift.training.layers import track
from tiny import random_instances, tiny_gpt2, tiny_llama, tiny_mamba


def test_which_models_keep_rows_apart():
    rows = [instance.input_ids for instance in random_instances(2, seed=0, n_prompt=1)]
    for model in (tiny_llama(), tiny_gpt2(dropout=0.5).train()):
        model.config.use_cache = False
        assert isolates_packed_rows(track(model), rows)
        assert model.training
    leaking = tiny_llama()
    leaking.config.use_cache = True
    assert not isolates_packed_rows(track(leaking), rows)
    mamba = tiny_mamba()
    assert not isolates_packed_rows(track(mamba), rows)
