"""The model: melodies, the core VAE, the fusion map, their training and their bundles."""
