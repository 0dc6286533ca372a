"""What goes to MLflow: the search's run, a nested run for each trial, the report, the winner as a registered model.

address.py   which URI, whether it can be used, MLflow's own pages
runs.py      events of the ledger -> what each run should hold; no mlflow
mirror.py    makes a server hold it; the only file that imports mlflow, and late
tracker.py   the thread that does so while a search runs
past.py      earlier searches, read back for a warm start
"""

from autokd.tracking.address import check, free_port, open_ui, redact
from autokd.tracking.mirror import load_model
from autokd.tracking.past import past_searches
from autokd.tracking.tracker import Tracker, TrackingSummary, sync

__all__ = [
    "Tracker",
    "TrackingSummary",
    "check",
    "free_port",
    "load_model",
    "open_ui",
    "past_searches",
    "redact",
    "sync",
]
