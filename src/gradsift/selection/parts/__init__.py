"""A pool that is too large to be looked at as a whole: parts of alike rows, joined in the end."""
