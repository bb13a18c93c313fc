"""The pipeline under Prefect. It knows dvc.yaml and command lines, and nothing of the stages' code."""
