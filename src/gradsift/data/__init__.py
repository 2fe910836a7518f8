"""SFT rows of any community format in; instances, and the very same rows, out."""
