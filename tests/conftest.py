"""Settings every test needs before the first heavy import: few threads, no hub, no stray writes."""

import os

# Read once, when the libraries load. Two ranks with two threads each on two cores are slower than with one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
