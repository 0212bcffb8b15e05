"""What is good: how similar, how coherent, against which baselines, and how sure one may be."""
