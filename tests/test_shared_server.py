"""A team's server: runs in PostgreSQL, artifacts in an S3 store, and clients that know neither."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

import boto3
import pytest
import tiny
from botocore.exceptions import ClientError
from commands import command, only_line
from paused import run_with, waiting
from recorded_tiny import write_task
from servers import Postgres, mlflow_server, moto, postgres_cluster
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

import qtrack
from qtrack import Ledger
from qtrack.engine.digests import digest_of
from qtrack.ledger.preflight import explain

pytestmark = pytest.mark.slow

BUCKET, PREFIX = "runs", "mlflow"
PASSWORD = "correct-horse-battery"
ARTIFACTS = f"s3://{BUCKET}/{PREFIX}"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only", "AWS_DEFAULT_REGION": "us-east-1"}


class Shared(NamedTuple):
    address: str
    database: Postgres
    bucket: object
    environment: dict[str, str]
    """Of the server's process."""


def rows(database, query):
    engine = create_engine(database.uri, poolclass=NullPool)
    with engine.begin() as connection:
        return list(connection.execute(text(query)))


def active(database):
    """What people see of the database: names of experiments, ids of runs."""
    of = "WHERE lifecycle_stage = 'active'"
    known = f"SELECT name FROM experiments {of} UNION SELECT run_uuid FROM runs {of}"
    return sorted(rows(database, known))


def keys(bucket):
    return {found.key for found in bucket.objects.all()}


def bucket_at(endpoint):
    """A new bucket, and what a server must be told to use it."""
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
    with postgres_cluster() as database, moto(folder) as endpoint:
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


def test_doctor_tries_the_server_and_leaves_nothing_in_it(shared, recorded, alone):
    before = keys(shared.bucket), active(shared.database)
    done = command("doctor", "--json", "--tracking-uri", shared.address)
    found = {row["what"]: row for row in json.loads(done.stdout) if row["what"].startswith("store")}
    assert done.exit_code == 0, found
    assert list(found) == ["store", "store version", "store clock", "store runs", "store artifacts"]
    assert {row["state"] for row in found.values()} == {"ok"}
    assert found["store artifacts"]["detail"].endswith("and removed")
    assert (keys(shared.bucket), active(shared.database)) == before


# what goes away, and comes back


def end_connections(database):
    """From the server's end, as a time limit or a restart of the database would."""
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
    assert rows(database, f"{ended} backend_type = 'client backend'")


def records(database, campaign):
    """The runs of a campaign by name, with their states; as often as they are there."""
    named = f"SELECT run_uuid FROM tags WHERE key = 'qtrack.campaign' AND value = '{campaign}'"
    return sorted(rows(database, f"SELECT name, status FROM runs WHERE run_uuid IN ({named})"))


def whole(campaign):
    return sorted((name, "FINISHED") for name in (campaign, "float", "qat"))


def test_after_all_connections_have_expired_the_next_command_works(shared, project):
    end_connections(shared.database)
    done = command("compare", "--json", "--tracking-uri", shared.address)
    assert (done.exit_code, done.stderr) == (0, "")


def test_connections_that_expire_in_the_middle_of_a_run_are_not_noticed(shared, alone):
    done = run_with(shared.address, lambda: end_connections(shared.database))
    assert "waits" not in done.stderr
    assert waiting() == []
    campaign = json.loads(done.stdout)[0]["campaign"]
    assert records(shared.database, campaign) == whole(campaign)


def test_connections_to_the_database_itself_may_expire_as_well(shared, project):
    ledger = Ledger.open(shared.database.uri)
    before = ledger.strategies()
    end_connections(shared.database)
    assert ledger.strategies() == before


def test_a_connection_that_ends_under_a_query_is_explained(shared):
    engine = create_engine(shared.database.uri, poolclass=NullPool)
    with engine.connect() as connection:
        end_connections(shared.database)
        with pytest.raises(OperationalError) as raised:
            connection.execute(text("SELECT 1"))
    assert explain(raised.value) == "the database closed the connection"


def test_a_bucket_that_is_not_there_is_explained(shared):
    with pytest.raises(ClientError) as raised:
        shared.bucket.meta.client.list_objects_v2(Bucket="another")
    assert explain(raised.value) == "the artifact store has no such bucket"


def test_a_run_outlives_its_database_and_is_sent_later(shared, alone):
    done = run_with(shared.address, shared.database.stop)
    try:
        assert "it does not reach its database (503)" in done.stderr
        assert "later: qtrack sync" in done.stderr
        line = only_line(command("compare", "--tracking-uri", shared.address))
        assert line.endswith("it does not reach its database (503); the server's log says why")
    finally:
        shared.database.start()
    sent = command("sync", "--json", "--tracking-uri", shared.address)
    assert sent.exit_code == 0, sent
    assert waiting() == []
    campaign = json.loads(done.stdout)[0]["campaign"]
    assert records(shared.database, campaign) == whole(campaign)


def test_a_run_outlives_its_artifact_store_and_is_sent_later(alone, tmp_path):
    with ExitStack() as storage, ExitStack() as serving:
        endpoint = storage.enter_context(moto(tmp_path))
        _, environment = bucket_at(endpoint)
        server = mlflow_server(tmp_path, artifacts=ARTIFACTS, environment=environment)
        address = serving.enter_context(server)
        done = run_with(address, storage.close)
        assert "it fails at its artifact store" in done.stderr
        assert "later: qtrack sync" in done.stderr
        hurried = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        line = only_line(command("layers", "float", "--tracking-uri", address, **hurried))
        assert "cannot read the files of the run 'float'" in line
        assert line.endswith("it fails at its artifact store; the server's log says why")
        serving.enter_context(moto(tmp_path, port=urlsplit(endpoint).port))
        bucket, _ = bucket_at(endpoint)
        assert command("sync", "--tracking-uri", address).exit_code == 0
        assert waiting() == []
        assert any(key.endswith("model/state_dict.pt") for key in keys(bucket))
        found = command("layers", "qat", "--json", "--tracking-uri", address)
        assert "head" in [row["layer"] for row in json.loads(found.stdout)]


def test_a_run_into_a_bucket_that_is_not_there_ends_before_any_work(alone, tmp_path):
    write_task(alone)
    with moto(tmp_path) as endpoint:
        environment = {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": endpoint}
        with mlflow_server(tmp_path, artifacts=ARTIFACTS, environment=environment) as address:
            done = command("run", "tiny.yaml", "--tracking-uri", address)
            checked = command("doctor", "--json", "--tracking-uri", address)
    line = only_line(done, ["reading the data"])
    assert line.endswith("it fails at its artifact store; the server's log says why")
    states = {row["what"]: row["state"] for row in json.loads(checked.stdout)}
    assert (checked.exit_code, states["store runs"], states["store artifacts"]) == (1, "ok", "broken")


def test_a_database_that_refuses_the_password_is_one_line():
    with postgres_cluster(PASSWORD) as database:
        assert Ledger.open(database.uri).experiment_names() == ["Default"]
        line = only_line(command("compare", "--tracking-uri", database.uri.replace(PASSWORD, "guessed")))
    assert line.endswith("the database refused the user or the password")
    assert "guessed" not in line
