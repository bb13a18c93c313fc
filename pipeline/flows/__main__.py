"""Run the pipeline as a Prefect flow: `python -m pipeline.flows`."""

from pipeline.flows.flow import train

if __name__ == "__main__":
    train()
