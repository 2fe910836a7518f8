"""What an earlier gradsift wrote, made of what this one writes."""

import json

from gradsift.store.manifest import MANIFEST_NAME, PARTS_FOLDER
from gradsift.utils import read_parquet, sha256_of, write_json, write_parquet


def make_former_store(folder, change):
    """Turn a store into what schema version 3 wrote; `change` may change its manifest, too."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for part in manifest["parts"]:
        path = folder / PARTS_FOLDER / part["file"]
        table = read_parquet(path)
        names = ["error_norm" if name == "el2n" else name for name in table.column_names]
        write_parquet(path, table.rename_columns(names))
        part["sha256"] = sha256_of(path)
    write_json(folder / MANIFEST_NAME, change(manifest) | {"schema_version": 3})
