"""A trained regularizer with its problem and hyperparameters, its files on disk, and the model registry."""
