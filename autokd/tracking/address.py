"""Tracking URIs: which one, whether it can be used, how it is shown; and MLflow's own web pages on one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autokd.errors import TrackingError, nearest

DEFAULT_URI = "sqlite:///mlflow.db"
DATABASES = {"sqlite": 0, "postgresql": 5432, "mysql": 3306, "mssql": 1433}  # usual ports
SCHEMES = ("http", "https", "databricks", *DATABASES)


def check(uri: str | None) -> str:
    """The tracking URI to use, sqlite paths made absolute. None: MLFLOW_TRACKING_URI, as MLflow does, else DEFAULT_URI.

    Raises TrackingError on an unknown scheme, a file store, or a database file that cannot be. Reaches no server.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    parts, base = urlsplit(uri), scheme(uri)
    if base == "file" or len(base) < 2:  # one letter: C:\mlruns
        raise TrackingError(
            f"MLflow refuses folders, got {uri!r}; use a database ({DEFAULT_URI}) or a server (http://…)"
        )
    if base not in SCHEMES:
        raise TrackingError(f"unknown scheme in tracking URI {redact(uri)!r}; {nearest(base, SCHEMES)}")
    if base == "sqlite":
        return _checked_file(uri)
    if base != "databricks" and not parts.hostname:
        raise TrackingError(
            f"a tracking URI must name a host, got {redact(uri)!r}; for example {base}://127.0.0.1:5000"
        )
    return uri


def scheme(uri: str) -> str:
    """Without a driver: "postgresql" of "postgresql+psycopg2://…"."""
    return "databricks" if uri == "databricks" else urlsplit(uri).scheme.partition("+")[0]


def sqlite_path(uri: str) -> Path:
    """The database file of a sqlite URI, absolute."""
    return Path(os.path.abspath(unquote(uri.partition(":///")[2].partition("?")[0])))


def _checked_file(uri: str) -> str:
    text = uri.partition(":///")[2]
    if not text or ":memory:" in text:
        raise TrackingError(f"a sqlite tracking URI must name a file, got {uri!r}; use {DEFAULT_URI}")
    path = sqlite_path(uri)
    above = next(folder for folder in path.parents if folder.exists())
    try:
        head = path.open("r+b").read(16) if path.exists() else b""
    except OSError as error:
        raise TrackingError(f"cannot use {path} for MLflow: {error.strerror}; use another tracking URI") from None
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise TrackingError(
            f"cannot create {path} for MLflow: {above} is no folder we may write to; use another tracking URI"
        )
    if head and head != b"SQLite format 3\0":
        raise TrackingError(f"an MLflow database must be a sqlite file, {path} is not; use another tracking URI")
    return f"sqlite:///{path.as_posix()}"


def redact(text: str) -> str:
    """The same text with user:password@ and tokens in addresses replaced by ***."""
    text = re.sub(r"://[^/\s\"']*@", "://***@", text)
    return re.sub(r"(?i)((?:token|key|password|passwd|pwd|secret|sig)\w*=)[^&\s'\"]+", r"\1***", text)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_ui(uri: str | None, port: int, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
    """Start MLflow's web pages on a database; they answer at http://host:port some seconds later, until terminated.

    Raises TrackingError if the port is in use, or if `uri` is a server, which has its own pages.
    """
    uri = check(uri)
    if scheme(uri) not in DATABASES:
        raise TrackingError(f"{redact(uri)} is a server already; open it in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} on {host} cannot be used ({error.strerror}); try port {free_port()}"
            ) from None
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not in the arguments, which other users of the machine can read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes of 240 MB, for features we do not use
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return subprocess.Popen(command, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
