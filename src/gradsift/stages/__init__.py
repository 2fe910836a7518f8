"""What the commands do, one stage a file: capture, select, explain."""
