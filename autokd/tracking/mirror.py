"""Makes an MLflow server show what a ledger says. The only file that imports mlflow, and late.

Runs are found again on the server by their tags, and MLflow's stores ignore a point they already hold, so that delivering an event
twice doubles nothing. `tracking.json` in the run folder only says how many events need not be sent again.

Measured with mlflow 3.17 and sqlite: 1.1 s of CPU for the import, 1.4 s for a new database, then 16 ms a trial.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import re
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autokd.errors import AutokdError, TeacherError
from autokd.ledger import Event
from autokd.tracking.address import DATABASES, check, redact, scheme, sqlite_path
from autokd.tracking.runs import SEARCH, STATUS, News, Runs

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

MODEL_FOLDER = "mlflow_model"  # in the run folder, until it is uploaded
TABLES = "mlflow.loggedArtifacts"  # the tag that makes MLflow show JSON files as tables


class Unreachable(AutokdError):
    """MLflow could not be used this time; one short line. Never leaves autokd.tracking."""


@dataclass
class Known:
    """A run that exists on the server."""

    run_id: str
    status: str
    state: str | None  # the tag autokd.state


class Mirror:
    """One search on one server. `deliver` and `finish` raise Unreachable; called again, they go on from there."""

    def __init__(self, uri: str, run_dir: Path, experiment: str | None) -> None:
        saved = read_state(run_dir)
        same = saved.get("uri") == redact(uri)
        self.uri, self.run_dir = uri, run_dir
        self.experiment: str | None = experiment or (saved.get("experiment") if same else None)
        self.experiment_id: str | None = None
        self.cursor: int = saved.get("cursor", 0) if same else 0  # events delivered
        self.upload: dict[str, str] = saved.get("upload", {})  # "report": folder, "model": name; not uploaded yet
        self.model: str | None = None  # "models:/name/version", once registered
        self.refused: dict[str, str] = {}  # runs of which MLflow takes no news, and why
        self.runs = Runs()
        self.known: dict[str, Known] = {}
        self._client: Any = None
        self._lock: IO[str] | None = None
        self._saving = threading.Lock()
        self._folded = 0

    def deliver(self, events: list[Event], over: bool) -> None:
        """Send what is new in `events`. `over`: nothing runs any more, so every run is ended."""
        with reaching():
            self._fold(events)
            if self._client is None:
                self._connect(events)
            for key in list(self.runs.started):
                self._send(key, over)
            if self.cursor != self._folded:
                self.cursor = self._folded
                self.save()

    def finish(self, ledger: Path) -> None:
        """Upload the ledger, the recipe, the report and the model, what there is of them."""
        with reaching():
            parent = self.known[SEARCH].run_id
            self._upload_ledger(parent, ledger)
            recipe = self.run_dir / "student" / "recipe.json"
            if recipe.exists():
                self._client.log_artifact(parent, str(recipe))
            if "report" in self.upload and Path(self.upload["report"]).is_dir():
                self._client.log_artifacts(parent, self.upload["report"], "report")
                self._client.set_tag(parent, TABLES, _tables(Path(self.upload["report"])))
            if "model" in self.upload and (self.run_dir / MODEL_FOLDER).is_dir():
                self._register(parent, self.upload["model"])
                shutil.rmtree(self.run_dir / MODEL_FOLDER)
            self.upload = {}
            self.save()

    def disconnect(self) -> None:
        """Look at the server afresh next time: a call that failed may have been carried out."""
        self._client = None

    def save(self) -> None:
        """Write tracking.json, whole or not at all, from either thread. Raises OSError."""
        parent = self.known.get(SEARCH)
        state = {
            "uri": redact(self.uri),
            "experiment": self.experiment,
            "experiment_id": self.experiment_id,
            "parent_run_id": parent.run_id if parent else None,
            "cursor": self.cursor,
            "upload": self.upload,
        }
        part = self.run_dir / "tracking.json.part"
        with self._saving:
            part.write_text(json.dumps(state, indent=1), encoding="utf-8")
            os.replace(part, self.run_dir / "tracking.json")

    def release(self) -> None:
        """Let another process deliver this run folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---- finding what is there

    @property
    def _search_id(self) -> str:
        return str(self.runs.history.head.get("search_id") or self.run_dir.name)

    def _fold(self, events: list[Event]) -> None:
        for event in events[self._folded :]:
            self.runs.add(event)
            self._folded += 1
            if self._folded <= self.cursor:
                self.runs.news.clear()  # delivered in an earlier session

    def _connect(self, events: list[Event]) -> None:
        self._take_lock()
        _probe(self.uri)
        client = _mlflow().MlflowClient(self.uri)
        self.experiment_id = self._find_experiment(client)
        self.known = self._find_runs(client)
        told = {SEARCH, *(event["trial"] for event in events[: self.cursor] if event["event"] == "start")}
        if self.cursor and not told <= set(self.known):  # the server has lost runs: tell it everything again
            self.runs, self.cursor, self._folded = Runs(), 0, 0
            self._fold(events)
        self._client = client

    def _take_lock(self) -> None:
        """One tracker for a run folder: two would make every run twice. The lock goes when its process does."""
        if self._lock is not None:
            return
        file = (self.run_dir / "tracking.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise Unreachable("another process is delivering this run folder") from None
        self._lock = file

    def _find_experiment(self, client: Any) -> str:
        """Its id; made if there is none of that name. The name of a deleted one stays taken, so it gets another."""
        wanted = (self.experiment or self.runs.name(SEARCH))[:400]
        for name in (wanted, f"{wanted} ({self._search_id})"):
            found = client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage != "deleted":
                return str(found.experiment_id)
            if found is None:
                break
        where = {}
        if scheme(self.uri) == "sqlite":  # beside the database rather than in whatever folder this process works in
            folder = sqlite_path(self.uri).parent / "mlruns" / re.sub(r"[^\w\-.]", "_", name)
            where = {"artifact_location": folder.as_uri()}
        return str(client.create_experiment(name, **where))

    def _find_runs(self, client: Any) -> dict[str, Known]:
        """The runs of this search that the server has, by key."""
        found: dict[str, Known] = {}
        query, order = f"tags.`autokd.search_id` = '{self._search_id}'", ["attributes.start_time ASC"]
        token: str | None = ""
        while token is not None:
            page = client.search_runs(
                [self.experiment_id], query, max_results=1000, order_by=order, page_token=token or None
            )
            for run in page:
                key = run.data.tags.get("autokd.trial_id", SEARCH)
                if key in found:  # made twice: a call was carried out after we had given it up
                    client.delete_run(run.info.run_id)
                else:
                    found[key] = Known(run.info.run_id, run.info.status, run.data.tags.get("autokd.state"))
            token = page.token or None
        return found

    # ---- one run

    def _send(self, key: str, over: bool) -> None:
        """Create the run if it is not there, then its news, then its status."""
        state = self.runs.state(key, over)
        status = STATUS.get(state, "FINISHED")
        known, news = self.known.get(key), self.runs.news.get(key)
        if known is not None and news is None and (known.state, known.status) == (state, status):
            return
        tags = {} if known is not None and known.state == state else {"autokd.state": state}
        tags |= news.tags if news else {}
        if known is None:
            known, tags = self._create(key, tags), {}
            self.known[key] = known
        mlflow = _mlflow()
        try:
            self._log(known.run_id, news or News(), tags)
            self._set_status(key, known, status)
        except mlflow.MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self.refused[key] = _brief(error)  # the run was deleted by hand, say: no reason to hold up the others
        known.state, known.status = state, status
        self.runs.news.pop(key, None)

    def _create(self, key: str, tags: dict[str, str]) -> Known:
        tags = tags | self.runs.identity(key, self._search_id) | {"mlflow.source.name": "autokd"}
        if key != SEARCH:
            tags["mlflow.parentRunId"] = self.known[SEARCH].run_id
        run = self._client.create_run(self.experiment_id, self.runs.started[key], tags, self.runs.name(key))
        return Known(run.info.run_id, "RUNNING", None)

    def _log(self, run_id: str, news: News, tags: dict[str, str]) -> None:
        """Everything new about one run in one call (the client cuts what is more than MLflow's limits)."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in news.metrics]
        params = [Param(*pair) for pair in news.params.items()]
        self._client.log_batch(run_id, metrics, params, [RunTag(*pair) for pair in tags.items()])

    def _set_status(self, key: str, known: Known, status: str) -> None:
        if status == "RUNNING" != known.status:
            self._client.update_run(known.run_id, status)
        elif status != known.status:
            self._client.set_terminated(known.run_id, status, self.runs.touched[key])

    def _upload_ledger(self, parent: str, ledger: Path) -> None:
        """Without the passwords that addresses in it may hold: a server has more readers than a run folder."""
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, "ledger.jsonl")
            with ledger.open(encoding="utf-8") as lines, copy.open("w", encoding="utf-8") as shown:
                shown.writelines(map(redact, lines))
            self._client.log_artifact(parent, str(copy))

    def _register(self, parent: str, name: str) -> None:
        """Upload the saved model as a logged model of the search's run, and as a new version of a registered one."""
        mlflow, client, folder = _mlflow(), self._client, self.run_dir / MODEL_FOLDER
        logged = client.create_logged_model(self.experiment_id, re.sub(r"[^\w\-]", "_", name), source_run_id=parent)
        card = mlflow.models.Model.load(str(folder))
        card.model_id = card.model_uuid = logged.model_id
        card.run_id, card.artifact_path = parent, logged.artifact_location
        card.save(str(folder / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(parent, [mlflow.entities.LoggedModelOutput(logged.model_id, step=0)])
        try:
            client.create_registered_model(name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # a database's registry would look "models:/…" up at the process-wide tracking URI: the user's, not ours
        source = logged.artifact_location if scheme(self.uri) in DATABASES else f"models:/{logged.model_id}"
        made = client.create_model_version(name, source, parent, model_id=logged.model_id, await_creation_for=0)
        self.model = f"models:/{name}/{made.version}"


def _tables(report: Path) -> str:
    """The tables of a report, as MLflow's pages want to be told of them."""
    names = ("ablation.json", "importance.json", "methods.json")
    return json.dumps([{"path": f"report/{name}", "type": "table"} for name in names if (report / name).exists()])


def read_state(run_dir: Path) -> dict[str, Any]:
    """tracking.json; empty if it is missing or unreadable, since all that matters can be found again."""
    try:
        saved = json.loads((run_dir / "tracking.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


# ---- mlflow, late and quiet


def quiet() -> None:
    """MLflow's telemetry off, unless the user has said otherwise; and no word about progress bars it might have drawn."""
    warnings.filterwarnings("ignore", message="IProgress not found")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


def _mlflow() -> Any:
    """The mlflow module, imported on first use (1 s) and kept from talking."""
    quiet()
    import mlflow
    import mlflow.pytorch

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # db.utils logs a page of traceback for a locked database, pytorch warns of every pickle: we say both ourselves
        for name, level in (("mlflow", "WARNING"), ("mlflow.store.db.utils", "CRITICAL"), ("mlflow.pytorch", "ERROR")):
            logging.getLogger(name).setLevel(level)
    return mlflow


def client_of(uri: str) -> Any:
    """MLflow's client of a server or store."""
    return _mlflow().MlflowClient(uri)


@contextmanager
def reaching() -> Iterator[None]:
    """Errors of MLflow, of its database, of the network and of the disk become one: Unreachable."""
    try:
        mlflow = _mlflow()
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise Unreachable(f"mlflow cannot be imported: {error}") from error
    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError, ImportError, ValueError, RuntimeError) as error:
        raise Unreachable(_brief(error)) from error


def _brief(error: BaseException) -> str:
    text = redact(" ".join(str(error).split()))
    signs = ("connection refused", "timed out", "name or service not known", "database is locked")
    return next((sign for sign in signs if sign in text.lower()), text[:160] or type(error).__name__)


def _probe(uri: str) -> None:
    """Fail fast when a database server is down: MLflow itself would sleep for minutes between attempts."""
    parts, port = urlsplit(uri), DATABASES.get(scheme(uri))
    if port:
        socket.create_connection((parts.hostname or "", parts.port or port), timeout=3).close()


# ---- models


def save_model(model: nn.Module, example: np.ndarray, folder: Path, version: str | None = None) -> None:
    """Write `model` to `folder` in MLflow's format, with signature and input example (4 rows of `example` at most).

    Pickled by reference, so that it comes back as the class it was: .eval(), .to() and fine-tuning work, which they do
    not on an exported graph. So loading it needs autokd, and trust in where it comes from. Raises Unreachable.
    """
    import torch

    rows = example[:4]
    needs = [f"torch=={torch.__version__.partition('+')[0]}", f"autokd=={version}" if version else "autokd"]
    with reaching(), torch.no_grad():
        mlflow = _mlflow()
        try:
            model = deepcopy(model).cpu().eval()
            signature = mlflow.models.infer_signature(rows, model(torch.from_numpy(rows)).numpy())
            shutil.rmtree(folder, ignore_errors=True)
            mlflow.pytorch.save_model(
                model,
                str(folder),
                signature=signature,
                input_example=rows,
                pip_requirements=needs,  # or MLflow would run the model in a fresh process to guess them
                serialization_format="pickle",
            )
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise Unreachable(_brief(error)) from error


def load_model(uri: str, tracking_uri: str | None = None) -> nn.Module:
    """The PyTorch model behind "models:/name/1", "runs:/id/model" or a folder in MLflow's format; else TeacherError.

    It EXECUTES code that is pickled in the model: load only from registries you trust. `tracking_uri` as for `check`.
    """
    tracking_uri, before = check(tracking_uri), os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with reaching():
            mlflow = _mlflow()
            previous = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
            mlflow.set_tracking_uri(tracking_uri)  # process-wide, as MLflow resolves models:/ in no other way
            try:
                model: nn.Module = mlflow.pytorch.load_model(uri)
            finally:
                mlflow.set_tracking_uri(previous)
    except (Unreachable, pickle.PickleError, AttributeError, EOFError) as error:
        raise TeacherError(
            f"no PyTorch model can be loaded from {uri!r} in {redact(tracking_uri)}: {_brief(error)}; see `autokd ui`"
        ) from None
    finally:
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
    return model
