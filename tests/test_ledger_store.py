"""Opening a store: where it is, how soon and how clearly it fails, and several processes at once."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from filelock import FileLock
from ledger_made import record, setting
from mlflow import MlflowClient
from servers import answering

from qtrack.errors import StoreError
from qtrack.ledger import Ledger, mask_secrets, preflight, sqlite_file
from qtrack.ledger.preflight import explain

pytest_plugins = ("ledger_store",)


@pytest.fixture
def refused():
    """The address of a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def refusal(uri):
    """The one line that opening ends with, and the seconds that it took."""
    started = time.perf_counter()
    with pytest.raises(StoreError) as raised:
        Ledger.open(uri)
    assert "\n" not in str(raised.value)
    return str(raised.value), time.perf_counter() - started


def test_the_default_store_is_a_database_in_the_working_folder(ledger, tmp_path):
    assert ledger.uri == f"sqlite:///{tmp_path}/mlflow.db"
    record(ledger)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".qtrack", "mlartifacts", "mlflow.db", "mlflow.db.lock")
    ]


def test_mlflow_s_own_conventions_are_honoured(empty_store, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    assert Ledger.open().uri == f"sqlite:///{empty_store}"
    assert Ledger.open(folder=tmp_path).uri == f"sqlite:///{empty_store}"
    assert not list(tmp_path.iterdir())


def test_a_relative_store_stays_the_same_wherever_the_process_goes(empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    ledger = Ledger.open("sqlite:///mlflow.db")
    monkeypatch.chdir("/")
    record(ledger, setting(stages=("float",)))
    run_id = ledger.strategies()[0].run_id
    assert (
        MlflowClient(ledger.uri)
        .get_run(run_id)
        .info.artifact_uri.startswith(f"{tmp_path}/mlartifacts/lines/")
    )


@pytest.mark.parametrize("name", ["with space", "per%41cent", "hash#mark"])
def test_a_store_lies_where_its_path_says(empty_store, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    ledger = Ledger.open(folder=folder)
    record(ledger, setting(stages=("float",)))
    assert ledger.layers("float")
    assert (folder / "mlartifacts" / "lines").is_dir()


def test_an_experiment_s_own_artifact_location_is_kept(ledger, client, tmp_path):
    client.create_experiment("lines", artifact_location=str(tmp_path / "elsewhere"))
    record(ledger)
    assert (tmp_path / "elsewhere").is_dir()
    assert not (tmp_path / "mlartifacts").exists()


def test_a_deleted_experiment_says_how_to_restore_it(ledger, client):
    client.delete_experiment(client.create_experiment("lines"))
    with pytest.raises(StoreError, match=r"was deleted in MLflow; restore it: mlflow experiments restore"):
        record(ledger)


def test_a_refused_connection_is_one_line_in_seconds(refused):
    said, seconds = refusal(f"http://me:hush@{refused}")
    assert said == f"tracking store http://me:***@{refused}: connection refused; is the server running?"
    assert seconds < 10


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://nowhere.invalid:5000", "no such host"),
        ("http://", "names no host"),
        ("http://[::1", "not a URL"),
        ("ftp://host/x", "unknown scheme 'ftp'; MLflow knows sqlite:///FILE"),
        ("mlruns", "this is a path"),
        ("file:///tmp/mlruns", "this is a path"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot create /proc/nowhere"),
        ("sqlite:////dev/null/mlflow.db", "cannot create /dev/null"),
        ("sqlite:////tmp", "/tmp is a folder"),
        ("mysql+nodriver://me:hush@127.0.0.1:1/db", "nodriver"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_in_seconds(uri, said):
    found, seconds = refusal(uri)
    assert said in found
    assert "hush" not in found
    assert seconds < 10


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "notes.db").write_text("not a database, " * 1000)
    assert "not an SQLite database" in refusal("sqlite:///notes.db")[0]


def test_a_locked_database_is_one_line_in_seconds(empty_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "LOCK_S", 0.2)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    other = sqlite3.connect(tmp_path / "mlflow.db")
    other.execute("BEGIN EXCLUSIVE")
    said, seconds = refusal(None)
    other.close()
    assert "the database is locked by another process" in said
    assert seconds < 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_is_read_only_can_be_read(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db").chmod(0o400)
    tmp_path.chmod(0o500)
    assert Ledger.open().experiment_names() == ["Default"]


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(preflight, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said, seconds = refusal(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "no answer in time" in said
    assert seconds < 5


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the server refused the credentials (401); see MLFLOW_TRACKING_USERNAME or _TOKEN"),
        (403, "the server does not permit this (403)"),
        (404, "there is no MLflow server at this address (404)"),
        (500, "it fails (500); the server's log says why"),
        (502, "a proxy answers, but not the server behind it"),
        (503, "it does not reach its database (503); the server's log says why"),
        (504, "a proxy answers, but not the server behind it"),
    ],
)
def test_a_server_that_answers_with_an_error_is_one_line(status, said):
    with answering(lambda path: (status, {}, "no\n")) as address:
        assert refusal(address)[0] == f"tracking store {address}: {said}"


def test_a_server_that_breaks_off_is_one_line():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        said, _ = refusal(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert said.endswith(": it broke off; the server's log says why")


def test_a_server_that_is_asked_by_another_name_says_so():
    refused = 403, {}, "Invalid Host header - possible DNS rebinding attack detected"
    with answering(lambda path: refused) as address:
        assert "does not go by this name (403); see its option --allowed-hosts" in refusal(address)[0]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("tests", "the artifact store does not answer; see MLFLOW_S3_ENDPOINT_URL"),
        (None, "no credentials for the artifact store; see AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_artifact_store_that_the_client_uses_itself_is_explained(refused, monkeypatch, key, said):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    once = Config(retries={"total_max_attempts": 1})
    session = boto3.session.Session(key, key, region_name="us-east-1")
    with pytest.raises(BotoCoreError) as raised:
        session.client("s3", endpoint_url=f"http://{refused}", config=once).list_buckets()
    assert explain(raised.value) == said


def test_the_patience_of_mlflow_is_left_as_it_was(refused, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    refusal(f"http://{refused}")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_an_older_database_is_copied_before_mlflow_migrates_it(empty_store, tmp_path, caplog):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
    database.close()
    with pytest.raises(StoreError, match="out-of-date database schema"):
        Ledger.open()
    with closing(sqlite3.connect(tmp_path / "mlflow.db.schema-older")) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("older",)
    assert "kept a copy as mlflow.db.schema-older" in caplog.text


def test_a_store_that_another_process_is_creating_is_waited_for(empty_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "LOCK_S", 0.1)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    creating = sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False)
    creating.execute("BEGIN EXCLUSIVE")
    lock = FileLock(tmp_path / "mlflow.db.lock", thread_local=False)
    lock.acquire()
    end = threading.Timer(1, lambda: (creating.close(), lock.release()))
    end.start()
    assert Ledger.open().experiment_names() == ["Default"]
    end.join()


RECORD = """
import sys
from ledger_made import record, setting
from qtrack.ledger import Ledger
ledger = Ledger.open()
print(record(ledger, setting(name=sys.argv[1])))
"""


@pytest.mark.slow
def test_two_processes_may_create_the_same_store(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RECORD, name],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    campaigns = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        campaigns.append(out.strip())
    ledger = Ledger.open()
    for campaign in campaigns:
        assert [row.status for row in ledger.strategies(campaign=campaign)] == ["FINISHED"] * 3


def test_reading_names_costs_no_import_of_mlflow():
    script = "import sys, qtrack.ledger; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_what_is_not_foreseen_is_still_one_line():
    assert explain(ValueError("first\nsecond")) == "first"
    assert explain(ValueError()) == "ValueError"
    assert len(explain(ValueError("x" * 1000))) == 300
    assert "psycopg2 is not installed" in explain(ModuleNotFoundError("No module", name="psycopg2"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:hush@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:p@ss:w@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("https://hushhush@host/x", "https://***@host/x"),
        ("http://host:5000/#/experiments", "http://host:5000/#/experiments"),
        ("--token hush --epochs 3", "--token *** --epochs 3"),
        ("--password=hush", "--password=***"),
        ("password: hush", "password: ***"),
        ('{"api_key": "hush hush", "a": 1}', '{"api_key": ***, "a": 1}'),
        ("AWS_SECRET_ACCESS_KEY=hush", "AWS_SECRET_ACCESS_KEY=***"),
        ("https://host/?token=hush&page=2", "https://host/?token=***&page=2"),
        ("Authorization: Bearer hush.hush", "Authorization: Bearer ***"),
        ("uses ghp_abcdefghijklmnop0123", "uses ***"),
        ("tokenizer: bert", "tokenizer: bert"),
        ("max_tokens: 512", "max_tokens: 512"),
        ("accuracy 0.98, drop: 0.01", "accuracy 0.98, drop: 0.01"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("me@host", "me@host"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text, masked):
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


def test_secrets_of_the_environment_are_masked_anywhere(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    assert mask_secrets("sent correct horse to the server") == "sent *** to the server"
