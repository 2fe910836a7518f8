"""Selected rows in the own form of a trainer, each with a configuration that runs."""
