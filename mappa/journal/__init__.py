"""The journal: one SQLite file per run that holds everything that was paid for, written before it is used.

with Journal(path, config) as journal:                      # one writer, on a thread of its own
    journal.add_action("3-1-Boston-0", 0, action)
    await journal.written()                                 # on disk: it may be used
    journal.recall("train", step=3)                         # what an interrupted run had got to

read_episodes(path), read_spans(path), read_config(path)    # of any journal, also one that is being written
"""

from mappa.journal.codec import Entry, Observation, Record, Span
from mappa.journal.reader import (
    read_action,
    read_advantages,
    read_call,
    read_calls,
    read_config,
    read_episodes,
    read_record,
    read_records,
    read_reviews,
    read_spans,
)
from mappa.journal.schema import SCHEMA
from mappa.journal.writer import WINDOW, Journal

__all__ = [
    "SCHEMA",
    "WINDOW",
    "Entry",
    "Journal",
    "Observation",
    "Record",
    "Span",
    "read_action",
    "read_advantages",
    "read_call",
    "read_calls",
    "read_config",
    "read_episodes",
    "read_record",
    "read_records",
    "read_reviews",
    "read_spans",
]
