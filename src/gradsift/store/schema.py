"""Columns of the gradient store: one record for each (instance, layer)."""

from __future__ import annotations

import pyarrow as pa

from gradsift.terms import STATISTICS

SCHEMA_VERSION = 3
STATUS_OK = "ok"
STATUS_NON_FINITE = "non_finite"


def record_schema(content_width: int, sketch_size: int) -> pa.Schema:
    """Return the schema of a part.

    Args:
        content_width: Entries of the content features; null in the records of the embedding, since
            they belong to the instance and stand once, in its `lm_head` record.
        sketch_size: Entries of a gradient sketch.

    Returns:
        The Arrow schema. `loss` is in nats for each response token; `error_norm` is the mean of
        ‖softmax − one-hot‖₂ over the response tokens; `step` counts optimizer
        updates made before the gradient was taken; statistics are over all entries of the
        layer's V×d gradient, `std` is the population's.
    """
    return pa.schema(
        [
            pa.field("instance_id", pa.string(), nullable=False),
            pa.field("layer", pa.string(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("loss", pa.float64(), nullable=False),
            pa.field("error_norm", pa.float64(), nullable=False),
            pa.field("n_response_tokens", pa.int32(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in STATISTICS),
            pa.field("status", pa.string(), nullable=False),
            pa.field("content_features", pa.list_(pa.float32(), content_width)),
            pa.field("sketch", pa.list_(pa.float32(), sketch_size)),
        ]
    )
