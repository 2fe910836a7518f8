"""All that knows trl, peft and transformers' trainer."""
