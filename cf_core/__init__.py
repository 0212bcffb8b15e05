"""The model: melodies, the core VAE, the fusion map, their training and their bundles."""

import os

# Read by PyTorch at its first large allocation. Without huge pages, the temporary tensors of a pack
# of 16 cost 35,000 page faults in every step, a tenth of its time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
