"""The folder ``deploy``: whole, without secrets, in the versions that are tested; its plain commands work."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from commands import command, only_line
from paused import run_with, waiting
from recorded_tiny import write_task
from servers import free_port, moto, postgres_cluster, serving
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text()
AUTH = (DEPLOY / "basic_auth.ini").read_text()
README = (DEPLOY / "README.md").read_text()
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))


def server_line():
    (line,) = re.findall(r"^mlflow server .*$", README.replace("\\\n  ", ""), re.MULTILINE)
    return line


def test_the_services_fit_together():
    compose = yaml.safe_load(COMPOSE)
    services = compose["services"]
    assert list(services) == ["database", "objects", "bucket", "server"]
    mounted = [mount.partition(":")[0] for one in services.values() for mount in one.get("volumes", [])]
    assert sorted(mounted) == sorted(compose["volumes"])
    assert {name for one in services.values() for name in one.get("depends_on", ())} <= set(services)
    assert services["server"]["environment"]["MLFLOW_S3_ENDPOINT_URL"] == "http://objects:7070"
    assert services["objects"]["environment"]["VGW_PORT"] == ":7070"
    assert services["server"]["environment"]["PGHOST"] == "database"


def test_every_variable_is_explained_and_must_be_set():
    used = re.findall(r"\$\{(\w+)(:\?)?", COMPOSE)
    assert {name for name, _ in used} == set(EXAMPLE)
    assert all(required for _, required in used)


def test_no_secret_is_given_away():
    assert {name for name in EXAMPLE if "PASSWORD" in name or "SECRET" in name} == {
        name for name, value in EXAMPLE.items() if not value
    }
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_versions_are_those_that_are_tested():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "--constraint constraints.txt 'mlflow[auth]'" in dockerfile
    assert f"mlflow=={version('mlflow')}" in (ROOT / "constraints.txt").read_text().splitlines()
    services = yaml.safe_load(COMPOSE)["services"]
    assert (DEPLOY / services["server"]["build"]["context"]).resolve() == ROOT
    for copied in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / path).is_file() for path in copied.split())
    images = [one["image"] for one in services.values() if "image" in one]
    assert [bool(re.search(r":v?\d", image)) for image in images] == [True, True]


def test_containers_and_plain_commands_start_the_same_server():
    inside = yaml.safe_load(COMPOSE)["services"]["server"]["command"].replace("${BUCKET:?}", "$BUCKET")
    assert server_line() == inside.replace("0.0.0.0", "127.0.0.1")


# the plain commands


@pytest.fixture(scope="module")
def settings():
    """What stands in a filled-in ``.env``."""
    filled = {name: value or secrets.token_hex(24) for name, value in EXAMPLE.items()}
    assert re.search(r"export PGHOST=localhost PGUSER=mlflow MLFLOW_S3_ENDPOINT_URL=", README)
    return {
        **filled,
        "PGHOST": "127.0.0.1",
        "PGUSER": "mlflow",
        **dict(re.findall(r"(MLFLOW_BACKEND_STORE_URI|MLFLOW_AUTH_CONFIG_PATH)=(\S+)", README)),
    }


@pytest.fixture(scope="module")
def deployed(settings, tmp_path_factory):
    """The address of the server that the README's plain commands start."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "deploy").symlink_to(DEPLOY)
    with postgres_cluster() as database, moto(folder) as endpoint:
        engine = create_engine(database.uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in re.findall(r'-c "([^"]+)"', README):
                connection.execute(text(statement.replace("$PGPASSWORD", settings["PGPASSWORD"])))
        around = {**settings, "PGPORT": str(database.port), "MLFLOW_S3_ENDPOINT_URL": endpoint}
        for _ in range(2):  # it may be there already
            subprocess.run([sys.executable, DEPLOY / "bucket.py"], check=True, env=around)
        port = str(free_port())
        line = server_line().replace("$BUCKET", settings["BUCKET"]).replace("5000", port)
        address = f"http://127.0.0.1:{port}"
        with serving(folder, shlex.split(line), around, f"{address}/health"):
            yield address


def user(name, password):
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def as_admin(settings, program):
    around = {**os.environ, **user("admin", settings["MLFLOW_AUTH_ADMIN_PASSWORD"])}
    subprocess.run([sys.executable, "-c", program], check=True, env=around)


@pytest.mark.slow
def test_a_user_who_is_no_admin_passes_doctor_and_runs_a_pipeline(deployed, settings, alone):
    password = secrets.token_hex(8)
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace("https://mlflow.example.com", deployed).replace("a password of hers", password)
    as_admin(settings, program)
    for _ in range(3):  # a server that is given no processor for seconds is rightly said not to answer
        doctor = command("doctor", "--tracking-uri", deployed, **user("ada", password))
        if doctor.exit_code == 0:
            break
    assert doctor.exit_code == 0, doctor.stdout
    assert "and removed" in doctor.stdout
    write_task(alone)
    done = command("run", "tiny.yaml", "--tracking-uri", deployed, **user("ada", password))
    assert done.exit_code == 0, done.stderr
    assert password not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_outlives_its_password_and_is_sent_with_the_next(deployed, settings, alone):
    users = f"from mlflow.server import get_app_client as client; users = client('basic-auth', '{deployed}')"
    grace, later = user("grace", "the first password"), user("grace", "the second password")
    as_admin(settings, f"{users}; users.create_user('grace', 'the first password')")

    def change():
        as_admin(settings, f"{users}; users.update_user_password('grace', 'the second password')")
        (seconds,) = re.findall(r"^auth_cache_ttl_seconds = (\d+)$", AUTH, re.MULTILINE)
        time.sleep(int(seconds) + 1)  # so long the server takes the password that was right

    done = run_with(deployed, change, **grace)
    assert "the server refused the credentials (401)" in done.stderr
    assert "later: qtrack sync" in done.stderr
    assert waiting()
    sent = command("sync", "--tracking-uri", deployed, **later)
    assert sent.exit_code == 0, sent
    assert waiting() == []
    compared = command("compare", "--json", "--tracking-uri", deployed, **later)
    assert [row["stage"] for row in json.loads(compared.stdout)] == ["float", "qat"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, user("admin", "another password")])
def test_wrong_credentials_are_one_line(deployed, given):
    line = only_line(command("compare", "--tracking-uri", deployed, **given))
    assert line.endswith("the server refused the credentials (401); see MLFLOW_TRACKING_USERNAME or _TOKEN")
    assert "another password" not in line
