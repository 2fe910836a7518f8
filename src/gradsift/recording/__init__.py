"""Recording around training loops that are not ours."""
