"""Speed, counted in the network's own passes, beside every peer: python -m experiments.speed --help."""
