"""The strategies: one short function each, from a pool and a budget to a choice."""
