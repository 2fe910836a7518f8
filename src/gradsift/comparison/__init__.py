"""Subsets compared by what models learn and forget."""
