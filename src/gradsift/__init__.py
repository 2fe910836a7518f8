"""gradsift."""
