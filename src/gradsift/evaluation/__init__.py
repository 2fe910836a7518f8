"""How good a model is: at the domain, and at what it could do before."""
