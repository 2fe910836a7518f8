"""Which instances to keep, and why: from gradient statistics and content to a subset."""
