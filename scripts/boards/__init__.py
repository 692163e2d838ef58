"""The dashboards as data, a module for each: what each panel asks Prometheus, and how that is shown."""

from __future__ import annotations

from scripts.boards.gpus import GPUS
from scripts.boards.host import HOST
from scripts.boards.keys import KEYS
from scripts.boards.service import ONE_SERVICE

BOARDS = {"host": HOST, "service": ONE_SERVICE, "keys": KEYS, "gpus": GPUS}
