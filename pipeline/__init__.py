"""Glue around DVC: Prefect flows, MLflow tracking, the model registry and serving."""
