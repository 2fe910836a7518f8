"""The gradient store: a run folder's Parquet parts and the manifest that accounts for them."""
