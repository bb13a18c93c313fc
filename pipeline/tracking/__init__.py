"""MLflow tracking: the run of each result, keyed by a fingerprint of what it is made from."""
