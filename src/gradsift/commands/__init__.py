"""What a user does: one module for each command; its function is the Python API."""
