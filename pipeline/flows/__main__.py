"""Run the pipeline as a Prefect flow: `python -m pipeline.flows`."""

from pipeline.flows.flow import pipeline

if __name__ == "__main__":
    pipeline()
