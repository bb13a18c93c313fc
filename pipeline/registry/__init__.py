"""The MLflow model registry: what a version carries, its card, and the gate before the champion."""
