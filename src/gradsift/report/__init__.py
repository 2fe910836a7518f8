"""What was found, as pictures; nothing here computes anything."""
