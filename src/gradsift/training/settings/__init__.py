"""The user's settings for trl, peft and the tokenizer, checked before any work."""
