"""The flows of prefect.yaml: their parameters, what they decide, what they show, and their deployments on a server."""

from __future__ import annotations

import asyncio
import http.server
import inspect
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import prefect
import pytest
import yaml
from conftest import ROOT, answers
from PIL import Image
from prefect import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Pending, Running
from prefect.utilities.callables import parameter_schema
from test_flows import free_port, wait_until

from elder import UserError, cli
from elder.model import registry
from pipeline import batch, champions, links
from pipeline.flows import flow_runs, graph, notify, process, progress, publish, repository, runner, source
from pipeline.flows import prune as pruning
from pipeline.flows.flow import StageFailed, train
from pipeline.flows.models import LOCK, CommandFailed, evaluate_champions, reconstruct_batch, row
from pipeline.flows.prune import prune
from pipeline.flows.watch import decide, watch

SCHEDULED = [StateType.SCHEDULED]
FLOWS = [train, watch, evaluate_champions, reconstruct_batch, prune]
SITE = ROOT / "docs" / "examples" / "site"
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a separate Prefect server, which this process and its children use."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = process.environment() | {"PREFECT_HOME": str(home)}
    with (home / "server.log").open("w") as log:
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        child = process.start(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}/api"
    try:
        assert wait_until(lambda: answers(f"{url}/health"), 120), (home / "server.log").read_text()[-3000:]
        with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: url}):
            patch.setenv("PREFECT_API_URL", url)
            yield url
    finally:
        process.stop(child)


def artifacts() -> list[tuple[str | None, str]]:
    """Key and data of every artifact on the server."""
    with get_client(sync_client=True) as client:
        return [(found.key, json.dumps(found.data)) for found in client.read_artifacts()]


# The graph and its cells

SECTIONS = {
    "cells": {
        "csmri-red": {"problem": "csmri", "regularizer": "red"},
        "csmri-scalar": {"problem": "csmri", "regularizer": "scalar"},
        "fast": {"problem": "inpaint", "regularizer": "red", "finetune": {"steps": 5}},
    },
    "problems": {"csmri": {}, "inpaint": {}, "deblur": {}},
    "regularizers": {"red": {}, "scalar": {}},
}


def test_the_groups_are_those_that_dvc_expands(project):
    groups, sections = graph.read(project.folder)
    selection = graph.Selection(sections)
    stages = [group.stage(key) for group in groups for key in (selection.keys(group.over) if group.over else [""])]
    listed = project.run("dvc", "stage", "list", "--name-only").stdout.split()
    assert stages == listed


def test_some_cells_need_their_problems_and_regularizers_alone():
    selection = graph.Selection(SECTIONS, ["fast"])
    assert (selection.keys("problems"), selection.keys("regularizers")) == (["inpaint"], ["red"])
    assert selection.keys("cells") == ["fast"]
    assert not selection.whole
    assert graph.Selection(SECTIONS).keys("problems") == ["csmri", "inpaint", "deblur"]


def test_what_fails_takes_along_what_needs_it_and_no_more():
    selection = graph.Selection(SECTIONS)
    selection.drop("regularizers", "red")
    assert selection.left == ["csmri-scalar"]
    selection = graph.Selection(SECTIONS)
    selection.drop("cells", "fast")
    assert selection.left == ["csmri-red", "csmri-scalar"]
    assert selection.keys("regularizers") == ["red", "scalar"]


def test_a_task_shows_problem_and_regularizer():
    selection, group = graph.Selection(SECTIONS), graph.Group("tune", "cells")
    assert selection.label(group, "csmri-red") == "tune@csmri-red"
    assert selection.label(group, "fast") == "tune@fast (inpaint, red)"


# Parameters


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_is_described_in_the_form(flow):
    described = parameter_schema(flow).properties
    assert set(described) == set(inspect.signature(flow.fn).parameters)
    assert all(len(entry.get("description", "")) > 10 for entry in described.values())


@pytest.mark.parametrize(
    ("flow", "parameters", "message"),
    [
        (train, {"stage_timeout": 0}, "stage_timeout: Input should be greater than 0"),
        (train, {"cells": "csmri-red"}, "cells: Input should be a valid list"),
        (watch, {"quiet": -1}, "quiet: Input should be greater than or equal to 0"),
        (evaluate_champions, {"images": "x", "limit": 0}, "limit: Input should be greater than or equal to 1"),
        (reconstruct_batch, {"measurements": "x", "out": "y", "suffix": ".gif"}, "suffix: Input should be '.png'"),
        (prune, {"days": 0}, "days: Input should be greater than or equal to 1"),
    ],
    ids=lambda value: value.name if isinstance(value, prefect.Flow) else None,
)
def test_a_bad_parameter_is_told_in_one_line(flow, parameters, message):
    with pytest.raises(ParameterTypeError) as refused:
        flow.validate_parameters(parameters)
    assert message in str(refused.value)


def test_what_is_not_there_is_told_before_anything_starts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "run", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match=r"has no dvc\.yaml"):
        train(str(tmp_path))
    (tmp_path / "dvc.yaml").write_text("stages: {tune: {foreach: '${cells}', do: {cmd: 'true'}}}")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SECTIONS))
    with pytest.raises(ValueError, match=r"params\.yaml has no cell slow; it has csmri-red, csmri-scalar, fast"):
        train(str(tmp_path), cells=["slow"])
    with pytest.raises(ValueError, match=r"images: .*nowhere is no folder"):
        evaluate_champions("nowhere", folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"measurements: .*nowhere is no folder"):
        reconstruct_batch("nowhere", "out", folder=str(tmp_path))


# A run of the graph, with DVC's part played by a script


@pytest.mark.parametrize("champion", [2, 3])
def test_one_cell_that_fails_stops_neither_the_others_nor_the_failure(champion, server, tmp_path, monkeypatch):
    """Nor what is told of them. A promotion is told of a champion: DVC may bring back the verdict of a former one."""
    group = "{foreach: '${cells}', do: {cmd: 'true'}}"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{tune: {group}, register: {group}, report: {{cmd: 'true'}}}}")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SECTIONS))
    notices = tmp_path / "notices.jsonl"
    monkeypatch.setenv(notify.VARIABLE, str(notices))
    started = []

    def dvc(command, log, **_):
        if command[1] == "status":
            return 0, [json.dumps({stage: ["changed"] for stage in command[3:]})]
        if "pipeline.champions" in command:
            return 0, [json.dumps([{"problem": "inpaint", "version": champion}])]
        started.append(command[-1])
        if command[-1] == "tune@csmri-scalar":
            return 1, ["tune csmri-scalar:  50%|#####     | 1/2", "out of memory"]
        if command[-1] == "register@fast":
            cell = tmp_path / "reports" / "cells" / "fast"
            cell.mkdir(parents=True)
            verdict = {"name": "elder-inpaint", "version": 2, "promoted": True, "told": "version 2 is champion"}
            (cell / "registered.json").write_text(json.dumps(verdict))
            (cell / "metrics.json").write_text(json.dumps({"finetuned": {"psnr": 30.25 + champion}}))
        return 0, []

    monkeypatch.setattr(process, "run", dvc)
    with pytest.raises(StageFailed, match=r"^tune@csmri-scalar: exit code 1: out of memory$"):
        train(str(tmp_path))
    tuned = ["tune@csmri-red", "tune@csmri-scalar", "tune@fast"]
    assert started == [*tuned, "register@csmri-red", "register@fast"]
    told = [json.loads(line) for line in notices.read_text().splitlines()]
    promotion = [("promotion", 2)] if champion == 2 else []
    assert [(entry["event"], entry.get("version")) for entry in told] == [*promotion, ("failure", None)]
    assert "out of memory" in told[-1]["text"]
    assert source.last(tmp_path) is None
    tables, verdicts = ([data for key, data in artifacts() if key == f"fast-{kind}"] for kind in ("table", "verdict"))
    assert any(f"{30.25 + champion}" in table for table in tables)
    assert any("by now the champion is version 3" in verdict for verdict in verdicts) == (champion == 3)


# Progress


def test_a_bar_moves_one_artifact_and_is_not_logged(monkeypatch):
    made, moved, logged = [], [], []
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    monkeypatch.setattr(progress, "create_progress_artifact", lambda percent, **_: made.append(percent) or "id")
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _, percent, **more: moved.append((percent, more)))
    show = progress.Progress("progress-pretrain", "pretrain", logged.append)
    for line in (
        "Running stage 'pretrain@red':",
        "pretrain red:   0%|          | 0/300 [00:00<?, ?it/s]",
        "Downloading artifacts: 100%|##########| 2/2 [00:00<00:00, 9it/s]",
        "pretrain red:  40%|████      | 120/300 [00:10<00:15, 11.9it/s, loss=0.01]",
        "pretrain red:  40%|████      | 121/300 [00:10<00:15, 11.9it/s, loss=0.01]",
        "pretrain red: 100%|██████████| 300/300 [00:25<00:00, 12it/s, loss=0.01]",
    ):
        show(line)
    assert logged == ["Running stage 'pretrain@red':"]
    assert made == [0]
    assert [percent for percent, _ in moved] == [40, 100]
    assert moved[0][1]["description"] == "pretrain red: 120/300 [00:10<00:15, 11.9it/s, loss=0.01]"


def test_a_server_that_is_away_stops_no_training(monkeypatch):
    def away(*_, **__):
        import httpx

        retries.append(PREFECT_CLIENT_MAX_RETRIES.value())
        raise httpx.ConnectError("refused")

    retries: list[int] = []
    monkeypatch.setattr(progress, "create_progress_artifact", away)
    progress.Progress("key", "tune", print)("tune x:  10%|#         | 1/10 [00:01<00:09]")
    assert retries == [0]  # each would hold the training up, whose output nobody reads meanwhile


# Watching a folder


@pytest.fixture
def watched(tmp_path) -> Path:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "a.png").write_bytes(b"one")
    return tmp_path


SETTINGS = {"source": "folder", "folder": "data/raw", "split": "random"}


def test_a_training_starts_when_names_or_contents_changed_and_for_nothing_else(watched):
    raw, first = watched / "data" / "raw", source.find(watched, SETTINGS)
    assert decide(first, None, quiet=0) is None
    source.note(watched, first)

    def now() -> source.Source:
        return source.find(watched, SETTINGS, source.last(watched))

    assert "1 files, unchanged" in (decide(now(), source.last(watched), quiet=0) or "")
    os.utime(raw / "a.png", (1, 1))
    assert "unchanged" in (decide(now(), source.last(watched), quiet=0) or "")
    (raw / "b.png").write_bytes(b"two")
    assert decide(now(), source.last(watched), quiet=0) is None
    assert "left alone until nothing changes for 3600 s" in (decide(now(), source.last(watched), quiet=3600) or "")
    (raw / "b.png").unlink()
    (raw / "a.png").write_bytes(b"eno")  # of the same length
    assert decide(now(), source.last(watched), quiet=0) is None
    assert "no files to watch" in (decide(source.find(watched, {"source": "builtin"}), None, quiet=0) or "")


def test_a_file_is_read_again_only_if_it_was_touched(watched, monkeypatch):
    before = source.find(watched, SETTINGS)
    monkeypatch.setattr(source, "_content", lambda path: pytest.fail(f"{path} was read"))
    assert source.find(watched, SETTINGS, before) == before


def test_pictures_behind_links_belong_to_the_source(watched, tmp_path_factory):
    """`prepare` follows links to folders; one may lead back."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "b.png").write_bytes(b"2")
    raw = watched / "data" / "raw"
    (raw / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(raw)
    found = source.find(watched, SETTINGS)
    assert "data/raw/linked/b.png" in found.files
    (elsewhere / "c.png").write_bytes(b"3")
    assert source.find(watched, SETTINGS, found).digest != found.digest


def test_the_list_of_splits_belongs_to_the_source(watched):
    (watched / "splits.csv").write_text("a,train\n")
    found = source.find(watched, SETTINGS | {"split": "splits.csv"})
    assert sorted(found.files) == ["data/raw/a.png", "splits.csv"]


@pytest.mark.parametrize("record", ["", "[]", '{"a": 1}', "not json"])
def test_a_broken_record_is_none(watched, record):
    source.note(watched, source.find(watched, SETTINGS))
    (watched / source.RECORD).write_text(record)
    assert source.last(watched) is None


def test_a_file_that_vanishes_during_the_look_is_no_file(watched, monkeypatch):
    (watched / "data" / "raw" / "b.png.part").write_bytes(b"half of it")
    read = source._content

    def content(path: Path) -> str:
        if path.suffix == ".part":
            path.unlink()
        return read(path)

    monkeypatch.setattr(source, "_content", content)
    assert list(source.find(watched, SETTINGS).files) == ["data/raw/a.png"]


def test_a_training_that_failed_is_told_once_and_tried_again_when_something_changed(server, watched, monkeypatch):
    (watched / "dvc.yaml").write_text("stages: {prepare: {cmd: 'true'}}")
    (watched / "params.yaml").write_text(yaml.safe_dump(SECTIONS | {"prepare": SETTINGS}))
    notices = watched / "notices.jsonl"
    monkeypatch.setenv(notify.VARIABLE, str(notices))
    monkeypatch.setattr(process, "run", lambda command, log, **_: (1, ["out of memory"]))

    def look(**parameters: float) -> tuple[str | None, str]:
        state = watch(str(watched), quiet=0, **parameters, return_state=True)
        return state.name, state.message or ""

    failed = ("Failed", "the training failed: prepare: exit code 1: out of memory")
    assert look() == failed
    name, why = look()
    assert name == "Completed"
    assert "failed 0 s ago" in why or "failed 1 s ago" in why
    assert look(retry=0) == failed
    (watched / "data" / "raw" / "b.png").write_bytes(b"two")
    assert look() == failed
    told = [json.loads(line) for line in notices.read_text().splitlines()]
    assert [(entry["event"], entry["flow"]) for entry in told] == [("failure", "watch")] * 3
    assert all("out of memory" in entry["text"] for entry in told)


def test_a_look_during_a_training_decides_nothing_and_fails_nothing(server, watched, monkeypatch):
    (watched / "params.yaml").write_text(yaml.safe_dump({"prepare": SETTINGS}))
    monkeypatch.setenv(notify.VARIABLE, str(watched / "notices.jsonl"))
    (watched / ".dvc").mkdir()
    with repository.hold(watched, "flow run long", print):
        state = watch(str(watched), quiet=0, return_state=True)
    assert state.name == "Completed"
    assert re.fullmatch(r"nothing decided while flow run long \(PID \d+\) uses the project", state.message or "")
    assert not (watched / "notices.jsonl").exists()
    assert repository.holder(watched) == ""


# Notices


def test_an_event_goes_to_a_file_or_a_url_and_its_failure_is_told(tmp_path, monkeypatch):
    bodies = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    monkeypatch.delenv(notify.VARIABLE, raising=False)
    assert notify.tell("promotion", "nobody listens") is None
    monkeypatch.setenv(notify.VARIABLE, str(tmp_path / "log"))
    assert notify.tell("promotion", "version 2", version=2) is None
    assert notify.tell("drift", "-3 dB") is None
    assert [json.loads(line)["event"] for line in (tmp_path / "log").open()] == ["promotion", "drift"]
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as hook:
        threading.Thread(target=hook.handle_request, daemon=True).start()
        monkeypatch.setenv(notify.VARIABLE, f"http://127.0.0.1:{hook.server_port}/hook")
        assert notify.tell("failure", "out of memory", run="7") is None
    assert (bodies[0]["event"], bodies[0]["text"], bodies[0]["run"]) == ("failure", "out of memory", "7")
    monkeypatch.setenv(notify.VARIABLE, f"http://127.0.0.1:{free_port()}/hook")
    assert "failure could not be told to http://127.0.0.1" in (notify.tell("failure", "nobody there") or "")
    monkeypatch.setenv(notify.VARIABLE, str(tmp_path / "missing" / "log"))
    assert "could not be told" in (notify.tell("failure", "nowhere") or "")


# What a run shows


def test_artifacts_are_small_and_made_only_of_what_is_new(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cell, figures = tmp_path / "reports" / "cells" / "inpaint-red", tmp_path / "reports" / "figures"
    for folder in (cell, figures):
        folder.mkdir(parents=True)
    (cell / "metrics.json").write_text(json.dumps({"finetuned": {"psnr": 30.5, "ssim": 0.93}}))
    verdict = {"name": "elder-inpaint", "version": 1, "promoted": True, "told": "version 1 is champion"}
    (cell / "registered.json").write_text(json.dumps(verdict))
    pixels = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(figures / "inpaint-panel.png")
    (tmp_path / "reports" / "index.html").write_text("the report")

    @prefect.flow
    def show():
        publish.publish(tmp_path, {})

    show()
    made = dict(artifacts())
    keys = {"inpaint-red-table", "inpaint-red-verdict", "inpaint-panel", "report"}
    assert keys <= made.keys()
    assert sum(len(made[key]) for key in keys) < 200_000 < (figures / "inpaint-panel.png").stat().st_size
    assert "30.5" in made["inpaint-red-table"]
    assert "index.html" in made["report"]
    assert "file://" not in made["report"]
    assert "MLFLOW_TRACKING_URI" in made["report"] or "MLflow" in made["report"]
    count = len(artifacts())
    show()
    assert len(artifacts()) == count
    (cell / "metrics.json").write_text(json.dumps({"finetuned": {"psnr": 31.5, "ssim": 0.93}}))
    show()
    assert len(artifacts()) == count + 1


def test_a_row_of_the_drift_table_compares_with_validation_and_with_the_initial_guess():
    champion = {"model": "models:/elder-csmri/3", "psnr": 30.0}
    mean, baseline = {"psnr": 26.5, "ssim": 0.81234}, {"name": "zero-filled", "psnr": 24.0}
    found = row(champion, mean, baseline, 7, 2)
    assert (found["change"], found["gain"], found["zero-filled"], found["failed solves"]) == (-3.5, 2.5, 24.0, 2)
    assert row(champion | {"psnr": None}, mean, baseline, 7, 2)["change"] is None


def test_old_flow_runs_go_with_their_artifacts_and_new_ones_stay(server, monkeypatch):
    @prefect.flow(name="train")
    def makes():
        prefect.artifacts.create_markdown_artifact("text", key="old-and-gone")

    @prefect.flow
    def foreign():
        prefect.artifacts.create_markdown_artifact("text", key="not-of-elder")

    makes()
    foreign()

    @prefect.flow
    def removes(days: float, dry_run: bool) -> int:
        return pruning.delete_flow_runs(days, dry_run)

    assert removes(1, False) == 0
    assert "old-and-gone" in dict(artifacts())
    there = removes(0, True)
    assert there >= 1
    assert removes(0, False) >= there
    assert "old-and-gone" not in dict(artifacts())
    assert "not-of-elder" in dict(artifacts())


def test_the_flows_that_are_pruned_are_all_there_are():
    assert sorted(pruning.FLOWS) == sorted(flow.name for flow in FLOWS)


@pytest.mark.parametrize("by_hand", [False, True], ids=["deployment", "by-hand"])
def test_a_run_whose_process_was_killed_is_closed_by_the_next_one(server, tmp_path, monkeypatch, by_hand):
    told: list[str] = []
    with get_client(sync_client=True) as client:
        if by_hand:
            runs = [client.create_flow_run(watch, state=Running()) for _ in range(5)]
        else:
            made = client.create_deployment(client.create_flow(watch), "killed")
            runs = [client.create_flow_run_from_deployment(made, state=Running()) for _ in range(5)]
        monkeypatch.setenv(notify.VARIABLE, str(tmp_path / "notices.jsonl"))
        killed, alive, elsewhere, ended, mine = runs
        parent = client.create_task_run(publish.publish, killed.id, "0", state=Running())  # stands for the inner flow
        inner = client.create_flow_run(train, parent_task_run_id=parent.id, state=Running())
        client.set_flow_run_state(ended.id, Completed(), force=True)
        marks = tmp_path / flow_runs.MARKS
        flow_runs._mark(marks, str(alive.id))
        for run in (killed, ended):
            (marks / str(run.id)).touch()
        monkeypatch.setattr(flow_runs, "deployment", SimpleNamespace(id=None))  # it would end with its parent
        monkeypatch.setattr(flow_runs, "flow_run", SimpleNamespace(id=str(mine.id)))
        flow_runs.begin(tmp_path, told.append)
        states = [client.read_flow_run(run.id).state.name for run in (killed, inner, alive, elsewhere, ended, mine)]
        assert client.read_task_run(parent.id).state.name == "Crashed"
    assert states == ["Crashed", "Crashed", "Running", "Running", "Completed", "Running"]
    assert told == [f"run {killed.name} is now Crashed: its process ended without a report"]
    (notice,) = [json.loads(line) for line in (tmp_path / "notices.jsonl").open()]
    assert (notice["event"], notice["run"]) == ("failure", str(killed.id))
    assert {mark.name for mark in marks.iterdir()} == {str(alive.id), str(mine.id)}


def test_of_the_runs_of_a_deployment_that_nothing_could_start_the_newest_stays(server, tmp_path, monkeypatch):
    """And one that was killed between the worker's claim and its first line is closed."""
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    monkeypatch.setattr(flow_runs, "STARTING", timedelta(seconds=1))
    told: list[str] = []
    with get_client(sync_client=True) as client:
        every = [DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=2)))]
        made = client.create_deployment(client.create_flow(prune), "overdue", schedules=every)
        here = DeploymentFilter(id=DeploymentFilterId(any_=[made]))

        def overdue() -> list[str]:
            waiting = client.read_flow_runs(deployment_filter=here, flow_run_filter=flow_runs._in(SCHEDULED))
            return sorted(run.name for run in flow_runs.due(waiting))

        killed, begun, elsewhere, mine = (
            client.create_flow_run_from_deployment(made, state=Pending(), parameters={"folder": str(folder)})
            for folder in (tmp_path, tmp_path, tmp_path / "another", tmp_path)
        )
        by_hand = client.create_flow_run_from_deployment(made)
        assert wait_until(lambda: len(overdue()) >= 3, 120)
        client.update_deployment(made, DeploymentUpdate(paused=True))
        monkeypatch.setattr(flow_runs, "deployment", SimpleNamespace(id=str(made)))
        monkeypatch.setattr(flow_runs, "flow_run", SimpleNamespace(id=str(mine.id)))
        (tmp_path / ".dvc").mkdir()
        flow_runs._mark(tmp_path / flow_runs.MARKS, str(begun.id))
        flow_runs.begin(tmp_path, told.append)
        assert len(overdue()) <= 2  # one may have come due in between
        states = [client.read_flow_run(run.id).state.name for run in (killed, begun, elsewhere, mine, by_hand)]
    assert states == ["Crashed", "Pending", "Pending", "Pending", "Scheduled"]
    assert f"run {killed.name} is now Crashed: its process ended without a report" in told
    assert sum("is skipped: due again before it could start" in line for line in told) >= 2


def test_a_run_ends_with_its_starter_once(monkeypatch):
    """A flow within a flow begins too; two watchers would each send SIGTERM, and the second interrupt the report."""
    monkeypatch.setattr(process, "_ending", threading.Event())
    before = threading.active_count()
    for _ in range(2):
        process.end_with_parent()
    assert threading.active_count() == before + 1


def test_a_champion_that_can_t_be_evaluated_leaves_the_others_in_the_table(server, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()

    def command(arguments, log, **_):
        if "pipeline.champions" in arguments:
            names = ("csmri", "inpaint")
            rows = [{"problem": p, "model": f"models:/elder-{p}/1", "psnr": 30.0, "own_code": None} for p in names]
            return 0, [json.dumps(rows)]
        if "models:/elder-csmri/1" in arguments:
            return 1, ["elder: a mask is missing"]
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        image = {"status": "converged"}
        mean, baseline = {"psnr": 29.5, "ssim": 0.9}, {"name": "masked", "psnr": 20.0}
        (out / "metrics.json").write_text(json.dumps({"mean": mean, "baseline": baseline, "images": [image]}))
        return 0, []

    monkeypatch.setattr(process, "run", command)
    with pytest.raises(CommandFailed, match=r"^evaluate csmri: elder: a mask is missing$"):
        evaluate_champions("new", folder=str(tmp_path))
    assert "models:/elder-inpaint/1" in dict(artifacts())["drift"]


def test_two_evaluations_do_not_write_the_same_results(server, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    out = tmp_path / "reports" / "champions"
    monkeypatch.setattr(process, "run", lambda *_, **__: pytest.fail("it began"))
    with (
        repository.alone(out / LOCK, out, "flow run first", print, 0),
        pytest.raises(repository.RepositoryHeld, match=rf"^flow run first \(PID \d+\) holds {out}"),
    ):
        evaluate_champions("new", folder=str(tmp_path), timeout=0.1)


def test_serve_leaves_the_deployment_of_another_project_alone(server, monkeypatch, capsys):
    def end(code: int):
        raise SystemExit(code)

    async def refuse(name: str) -> None:
        async with get_client() as client:
            await runner.refuse_that_of_another_folder(client, name)

    monkeypatch.setattr(runner, "end", end)
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(train)
        for name, folder in (("theirs", "/elsewhere"), ("ours", str(ROOT))):
            client.create_deployment(flow_id, name, parameters={"folder": folder})
    asyncio.run(refuse("ours"))
    asyncio.run(refuse("new"))
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        asyncio.run(refuse("theirs"))
    assert "train/theirs on this server is that of /elsewhere; choose another --name" in capsys.readouterr().err


def test_a_folder_without_dvc_gets_no_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(flow_runs, "deployment", SimpleNamespace(id=None))
    flow_runs.begin(tmp_path, pytest.fail)
    assert not [*tmp_path.iterdir()]


# The commands below the flows


def test_a_batch_does_what_it_can_and_says_what_it_could_not(bundle, photographs, tmp_path, monkeypatch, capsys):
    measured, out = tmp_path / "measured", tmp_path / "out"
    settings = ["--set", "ratio=0.4"]
    assert cli.main(["simulate", "csmri", "--images", str(photographs), "--out", str(measured), *settings]) == 0
    kept = sorted(measured.iterdir())[:2]
    for path in measured.iterdir():
        if path not in kept:
            path.unlink()
    (measured / "broken.npz").write_bytes(b"nothing")
    (measured / "notes.txt").write_text("no measurement")
    monkeypatch.setattr("sys.argv", ["batch", str(bundle), "--measurements", str(measured), "--out", str(out)])
    with pytest.raises(SystemExit, match="1"):
        batch.main()
    rows = {entry["measurement"]: entry for entry in json.loads((out / "batch.json").read_text())}
    assert set(rows) == {"broken.npz", *(path.name for path in kept)}
    for path in kept:
        assert rows[path.name]["done"]
        assert "steps" in rows[path.name]["told"]
        assert Image.open(out / f"{path.stem}.png").size == (48, 40)
    assert rows["broken.npz"]["picture"] is None
    assert "broken.npz" in rows["broken.npz"]["told"]
    assert "1 of 3 measurements failed" in capsys.readouterr().err


def test_a_batch_resumes_where_model_and_measurement_are_the_same(
    bundle, small_model, photographs, tmp_path, monkeypatch, capsys
):
    measured, out = tmp_path / "measured", tmp_path / "out"
    settings = ["--set", "ratio=0.4"]
    assert cli.main(["simulate", "csmri", "--images", str(photographs), "--out", str(measured), *settings]) == 0
    first, second, third, *others = sorted(measured.iterdir())
    for path in others:
        path.unlink()
    shutil.copytree(bundle, tmp_path / "model")

    def made() -> list[str]:
        """The pictures that one more batch makes."""
        times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
        monkeypatch.setattr(
            "sys.argv", ["batch", f"{tmp_path}/model", f"--measurements={measured}", f"--out={out}", *how]
        )
        with pytest.raises(SystemExit, match="0"):
            batch.main()
        assert [row["done"] for row in json.loads((out / "batch.json").read_text())] == [True] * 3
        return sorted(path.stem for path in out.glob("*.png") if path.stat().st_mtime_ns != times.get(path))

    how = ["--resume"]
    everything = [path.stem for path in (first, second, third)]
    assert made() == everything
    assert made() == []
    assert "3 of 3 measurements reconstructed" in (told := capsys.readouterr().out)
    assert "3 of them before" in told
    (out / f"{first.stem}.png").unlink()
    shutil.copy(second, third)
    assert made() == [first.stem, third.stem]
    replace(small_model, metadata={"label": "another"}).save(tmp_path / "model")
    assert made() == everything
    how = []
    assert made() == everything
    (out / "batch.json").write_text('{"of": "something else"}')
    monkeypatch.setattr(
        "sys.argv", ["batch", f"{tmp_path}/model", f"--measurements={measured}", f"--out={out}", "--resume"]
    )
    with pytest.raises(SystemExit, match="1"):
        batch.main()
    assert "is no listing of a batch" in capsys.readouterr().err


def test_a_batch_that_is_ended_lists_what_it_has_done(bundle, photographs, tmp_path):
    measured, out = tmp_path / "measured", tmp_path / "out"
    settings = ["--set", "ratio=0.4"]
    assert cli.main(["simulate", "csmri", "--images", str(photographs), "--out", str(measured), *settings]) == 0
    first = min(measured.iterdir())
    for number in range(500):
        shutil.copy(first, measured / f"more{number}.npz")
    first.rename(measured / "-a.npz")  # no option
    out.mkdir()
    (out / "batch.json").write_text("[]")
    command = [sys.executable, "-m", "pipeline.batch", bundle, "--measurements", ".", "--out", out]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    running = subprocess.Popen(
        [str(word) for word in command], cwd=measured, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    assert running.stdout is not None
    assert "converged" in running.stdout.readline().decode()
    running.terminate()
    assert running.wait(timeout=60) == 128 + signal.SIGTERM
    rows = json.loads((out / "batch.json").read_text())
    assert rows[0]["measurement"] == "-a.npz"
    assert rows[0]["done"]
    assert len(rows) < 500


def test_a_batch_does_not_take_its_pictures_for_measurements(bundle, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "y.npz", y=np.ones((16, 16), np.complex64), mask=np.ones((16, 16)))
    command = ["batch", str(bundle), "--measurements", str(tmp_path), "--out", str(tmp_path), "--suffix", ".npy"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="1"):
        batch.main()
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]
    assert str(tmp_path) in capsys.readouterr().err


def test_champions_are_named_by_their_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("problems: {mine: {class: own.Mine}}")
    listed = [("elder-csmri", 4, "challenger", 31.0), ("elder-csmri", 3, "champion, first", 30.5)]
    listed += [("elder-deblur", 1, "challenger", 20.0), ("elder-mine", 2, "champion", float("nan"))]
    rows = [dict(zip(("name", "version", "alias", "psnr"), entry, strict=True)) for entry in listed]
    monkeypatch.setattr(registry, "listing", lambda: rows)
    csmri = {"problem": "csmri", "model": "models:/elder-csmri/3", "version": 3, "psnr": 30.5, "own_code": None}
    mine = {"problem": "mine", "model": "models:/elder-mine/2", "version": 2, "psnr": None, "own_code": "own.Mine"}
    assert champions.find([]) == [csmri, mine]
    assert champions.find(["mine"]) == [mine]
    with pytest.raises(UserError, match="deblur: no champion; there is one of csmri, mine"):
        champions.find(["deblur", "csmri"])


# Deployments


def deploy(folder: Path, url: str, **variables: str) -> str:
    """What `prefect deploy --all` prints on a terminal, where it would ask if anything were left open."""
    environment = process.environment() | {"PREFECT_API_URL": url, "PYTHONPATH": "", "COLUMNS": "200", **variables}
    master, slave = pty.openpty()
    child = subprocess.Popen(
        ["prefect", "deploy", "--all"], cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    printed = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        printed += part
        if b"[y/n]" in printed or not part:
            child.kill()
            break
    os.close(master)
    text = printed.decode(errors="replace")
    assert child.wait() == 0, text[-3000:]
    return text


def make_pool(url: str) -> None:
    body = json.dumps({"name": "elder", "type": "process"}).encode()
    request = urllib.request.Request(f"{url}/work_pools/", body, {"Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310  loopback


def test_all_deployments_are_made_without_a_question(server, tmp_path):
    for name in ("pipeline", "prefect.yaml"):
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    command = ["prefect", "work-pool", "create", "elder", "--type", "process"]
    assert " ".join(command) in (ROOT / "docs" / "deployments.md").read_text()
    environment = process.environment() | {"PREFECT_API_URL": server}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    deploy(tmp_path, server, TZ="Europe/Berlin")

    async def read():
        async with get_client() as client:
            flows = {found.id: found.name for found in await client.read_flows()}
            made = [one for one in await client.read_deployments() if one.work_pool_name == "elder"]
            return {f"{flows[one.flow_id]}/{one.name}": one for one in made}

    found = asyncio.run(read())
    scheduled = {"train/nightly", "watch/hourly", "prune/weekly"}
    assert set(found) == scheduled | {"evaluate-champions/by-hand", "reconstruct-batch/by-hand"}
    for name in scheduled:
        assert [entry.schedule.timezone for entry in found[name].schedules] == ["Europe/Berlin"]
        assert found[name].global_concurrency_limit is None  # its leases end runs that live
    here = str(tmp_path.resolve())
    assert all(one.job_variables["env"]["PYTHONPATH"] == here for one in found.values())
    assert found["train/nightly"].parameter_openapi_schema["properties"]["folder"]["default"] == here
    assert found["train/nightly"].enforce_parameter_schema


def test_the_documentation_names_the_deployments_and_settings_that_there_are():
    text = (ROOT / "docs" / "deployments.md").read_text()
    for one in DEPLOYMENTS:
        path, name = one["entrypoint"].split(":")
        module = __import__(path.removesuffix(".py").replace("/", "."), fromlist=[name])
        assert f"{getattr(module, name).name}/{one['name']}" in text
    named = set(re.findall(r"python -m (pipeline[\w.]*)", text))
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() or module == "pipeline.flows" for module in named)
    assert {notify.VARIABLE, links.VARIABLE} <= set(re.findall(r"ELDER_\w+", text))


# A site


def test_the_containers_fit_together():
    services = yaml.safe_load((SITE / "compose.yaml").read_text())["services"]
    assert set(services) == {"database", "prefect", "mlflow", "worker"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]
    environment = services["worker"]["environment"]
    for variable, name in (("PREFECT_API_URL", "prefect"), ("MLFLOW_TRACKING_URI", "mlflow")):
        host, port = re.fullmatch(r"http://(\w+):(\d+)(?:/api)?", environment[variable]).groups()
        assert (host, f"127.0.0.1:{port}:{port}") == (name, services[name]["ports"][0])
    assert "mlflow:5000" in services["mlflow"]["command"].split("--allowed-hosts ")[1]
    assert "--serve-artifacts" in services["mlflow"]["command"]
    worker = services["worker"]["command"].replace("--no-prompt ", "")
    assert all(part in worker for part in ("work-pool create elder", "prefect deploy --all", "pipeline.worker"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_reads_the_units(tmp_path):
    for unit in SITE.glob("*.service"):
        # What it would start is not installed here.
        (tmp_path / unit.name).write_text(re.sub(r"/opt/elder/\.venv/bin/\w+", "/bin/true", unit.read_text()))
    units = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (len(units), done.returncode, done.stderr) == (3, 0, "")


def test_the_units_read_settings_that_the_file_has():
    names = set(re.findall(r"^#?(\w+)=", (SITE / "elder.env").read_text(), re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)\}", "".join(unit.read_text() for unit in SITE.glob("*.service"))))
    assert used <= names
    assert {"PREFECT_API_URL", "MLFLOW_TRACKING_URI", notify.VARIABLE, links.VARIABLE} <= names
