"""Replay: general rows beside those that are taught, so that less is forgotten."""
