"""Remove what nobody needs any more: old runs, versions and checkpoints, and what Prefect keeps of old flow runs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from prefect import flow, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
)
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from pipeline import ROOT
from pipeline.flows import flow_runs, notify
from pipeline.flows.models import run

# Flow runs that one request asks for.
PAGE = 100
# The flows whose runs go; a server may have others.
FLOWS = ("train", "watch", "evaluate-champions", "reconstruct-batch", "prune")
# Seconds for the command that prunes MLflow's store.
PATIENCE = 3600.0

AtLeastOne = Annotated[int, Field(ge=1)]


@task(name="flow runs", cache_policy=NO_CACHE)
def delete_flow_runs(days: float, dry_run: bool) -> int:
    """Delete the runs of elder's flows that ended more than `days` ago, with their artifacts. Returns how many."""
    limit = datetime.now(UTC) - timedelta(days=days)
    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    old, count = FlowRunFilter(end_time=FlowRunFilterEndTime.model_validate({"before_": limit})), 0
    with get_client(sync_client=True) as client:
        # What is deleted leaves the first page.
        while found := client.read_flow_runs(
            flow_filter=ours, flow_run_filter=old, limit=PAGE, offset=count if dry_run else 0
        ):
            count += len(found)
            if dry_run:
                continue
            ids = [flow_run.id for flow_run in found]
            theirs = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=ids))
            while artifacts := client.read_artifacts(artifact_filter=theirs, limit=PAGE):
                for artifact in artifacts:
                    client.delete_artifact(artifact.id)
            for flow_run_id in ids:
                try:
                    client.delete_flow_run(flow_run_id)
                except ObjectNotFound:  # a flow run goes with the one above it
                    continue
    return count


@flow(name="prune", on_failure=[notify.failed], on_crashed=[notify.failed])
def prune(
    folder: str = str(ROOT),
    days: AtLeastOne = 90,
    repros: AtLeastOne = 20,
    versions: Annotated[int, Field(ge=0)] = 10,
    flow_run_days: AtLeastOne = 30,
    dry_run: bool = False,
) -> None:
    """Remove old runs, versions, checkpoints and flow runs. Champions stay, and so does every version with an alias.

    Args:
        folder: The project.
        days: Days that runs of MLflow and checkpoints stay.
        repros: The last repros whose runs stay, whatever their age.
        versions: Versions without an alias that stay of each model.
        flow_run_days: Days that flow runs of Prefect stay, with their artifacts.
        dry_run: Only show what would go.
    """
    root, log = Path(folder).resolve(), get_run_logger()
    flow_runs.begin(root, log.warning)
    command = [sys.executable, "-m", "pipeline.prune", "--days", str(days), "--repros", str(repros)]
    command += ["--versions", str(versions), "--dry-run" if dry_run else "--yes"]
    run("prune", command, root, PATIENCE)
    count = delete_flow_runs(flow_run_days, dry_run)
    log.info(f"{count} flow runs {'would go' if dry_run else 'removed'}")
