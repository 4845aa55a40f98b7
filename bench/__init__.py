"""One program per claim: python -m bench.NAME [--quick] [--json PATH]. Peers are measured in the same run."""
