"""A selection as one page: what was kept and why, as charts and as a table of all rows."""
