"""Configurations of other trainers → gradsift's settings; no key is ignored in silence."""
