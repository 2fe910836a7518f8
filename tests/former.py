"""What an earlier gradsift wrote, made of what this one writes."""

import json

import pyarrow.parquet as pq

from gradsift.seals import KEY, read_parquet, sha256_of
from gradsift.store.manifest import MANIFEST_NAME, PARTS_FOLDER


def make_former_store(folder, change):
    """Turn a store into what schema version 3 wrote; `change` may change its manifest, too."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for part in manifest["parts"]:
        path = folder / PARTS_FOLDER / part["file"]
        table = read_parquet(path)
        names = ["error_norm" if name == "el2n" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
        part["sha256"] = sha256_of(path)
    write_plain_json(folder / MANIFEST_NAME, change(manifest) | {"schema_version": 3})


def write_plain_json(path, value):
    """Write JSON without a digest, as before there was one."""
    path.write_text(json.dumps({name: one for name, one in value.items() if name != KEY}))


def unsealed(path):
    """Return the lines of a YAML file without that with their digest."""
    return path.read_text().partition("\n")[2]
