"""A team's server: runs in PostgreSQL, artifacts in an S3 store, and clients that know neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import tiny
from recorded_tiny import write_task
from servers import Postgres, mlflow_server, moto, postgres_cluster
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import qtrack
from qtrack.engine.digests import digest_of

pytestmark = pytest.mark.slow

BUCKET, PREFIX = "runs", "mlflow"
ARTIFACTS = f"s3://{BUCKET}/{PREFIX}"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only", "AWS_DEFAULT_REGION": "us-east-1"}


class Shared(NamedTuple):
    address: str
    database: Postgres
    bucket: object
    environment: dict[str, str]
    """Of the server's process."""


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def command(*arguments, **environment):
    """A command as a user would give it, in a process that knows neither the database nor the bucket."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_S3_"))}
    done = subprocess.run(
        [sys.executable, "-m", "qtrack", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**known, **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def rows(database, query):
    engine = create_engine(database.uri, poolclass=NullPool)
    with engine.begin() as connection:
        return list(connection.execute(text(query)))


def keys(bucket):
    return {found.key for found in bucket.objects.all()}


def bucket_at(endpoint):
    """A new bucket, and what a server must be told to use it."""
    boto3 = pytest.importorskip("boto3", reason="needs boto3")
    known = {
        "aws_access_key_id": S3_KEYS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": S3_KEYS["AWS_SECRET_ACCESS_KEY"],
        "region_name": S3_KEYS["AWS_DEFAULT_REGION"],
    }
    bucket = boto3.resource("s3", endpoint_url=endpoint, **known).Bucket(BUCKET)
    bucket.create()
    return bucket, {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": endpoint}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with postgres_cluster(folder) as database, moto(folder) as endpoint:
        bucket, environment = bucket_at(endpoint)
        with mlflow_server(folder, database.uri, artifacts=ARTIFACTS, environment=environment) as address:
            yield Shared(address, database, bucket, environment)


@pytest.fixture(scope="module")
def recorded(shared, tmp_path_factory):
    """The folder of a pipeline that was run into the server, and what the command said."""
    folder = tmp_path_factory.mktemp("recorded")
    write_task(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, command("run", "tiny.yaml", "--json", "--tracking-uri", shared.address)


@pytest.fixture
def project(recorded, monkeypatch):
    monkeypatch.chdir(recorded[0])
    return recorded[0]


# the way of a campaign


def test_a_campaign_is_run_and_nothing_waits(recorded):
    folder, done = recorded
    assert done.exit_code == 0, done.stderr
    assert [row["stage"] for row in json.loads(done.stdout)] == ["float", "ptq", "qat"]
    assert list((folder / ".qtrack" / "spool").iterdir()) == []


def test_its_runs_lie_in_postgresql_and_its_artifacts_in_the_bucket(shared, recorded):
    stages = {row["run_id"]: row["stage"] for row in json.loads(recorded[1].stdout)}
    found = rows(shared.database, "SELECT run_uuid, name, status, artifact_uri FROM runs")
    assert {run: name for run, name, _, _ in found if run in stages} == stages
    assert {status for _, _, status, _ in found} == {"FINISHED"}
    for run, name, _, uri in found:
        assert uri.startswith("mlflow-artifacts:/")
        kept = f"{PREFIX}{uri.removeprefix('mlflow-artifacts:')}"
        expected = {"layers.json", "model/state_dict.pt"} if name in stages.values() else {"summary.json"}
        assert {f"{kept}/{file}" for file in expected} <= keys(shared.bucket), run


def test_compare_shows_the_campaign(shared, project):
    done = command("compare", "--json", "--tracking-uri", shared.address)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [row["stage"] for row in json.loads(done.stdout)] == ["float", "ptq", "qat"]


@pytest.mark.parametrize("stage", ["ptq", "qat"])
def test_a_stage_is_reproduced_bit_for_bit(shared, project, stage):
    done = command("reproduce", stage, "--json", "--tracking-uri", shared.address)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["drifted"]) == ("bit-identical", [])


def test_a_model_is_loaded_with_the_parameters_that_are_in_the_bucket(shared, project, monkeypatch):
    for name in shared.environment:
        monkeypatch.delenv(name, raising=False)
    model = qtrack.load("ptq", tracking_uri=shared.address)
    (run,) = json.loads(command("compare", "ptq", "--json", "--tracking-uri", shared.address).stdout)
    ending = f"{run['run_id']}/artifacts/fingerprint.json"
    (key,) = [key for key in keys(shared.bucket) if key.endswith(ending)]
    fingerprint = json.load(shared.bucket.Object(key).get()["Body"])
    assert digest_of(model.state_dict()) == fingerprint["parameters"]
    batches = tiny.Tiny().validation()
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
    assert right / 200 == run["value"]
