"""What a run of `prepare_corpus.py` remembers, in one SQLite file: how far it is, and which documents it has seen."""

import json
import sqlite3

import numpy as np
from corpus_input import CorpusError
from corpus_rules import similarity


class State:
    """What a run has to remember, by name, in OUT/state.db, which one process at a time can have open."""

    TABLES = {"state", "exact", "bands", "signatures"}

    def __init__(self, folder):
        self.path = folder / "state.db"
        if self.path.is_symlink():
            raise CorpusError(f"{self.path} is a symbolic link, which no run has made: choose another --out")
        try:
            self.connection = sqlite3.connect(self.path, isolation_level=None, timeout=1)
            self._open()
        except sqlite3.Error as error:
            self.close()
            if "locked" in str(error):
                raise CorpusError(f"another process is at work in {folder}") from None
            raise CorpusError(f"{self.path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def _open(self):
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.connection.execute("PRAGMA cache_size = -65536")  # 64 MB
        self.connection.execute("BEGIN EXCLUSIVE")
        tables = {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables <= self.TABLES:
            raise CorpusError(f"{self.path} is the database of another program: choose another --out")
        self.connection.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT)")

    def load(self, name):
        row = self.connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        try:
            return json.loads(row[0]) if row else None
        except (ValueError, TypeError) as error:
            raise CorpusError(f"{self.path} is damaged: {error}; --restart begins anew") from None

    def save(self, name, value):
        self.connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value)))

    def commit(self):
        self.connection.execute("COMMIT")
        self.connection.execute("BEGIN EXCLUSIVE")

    def close(self):
        if hasattr(self, "connection"):
            self.connection.close()


class SeenBefore:
    """What is known of the documents that were kept, in SQLite: their hashes, their band keys, their signatures.

    `look_up` a batch, then `check_in` its documents in order. What is new goes to SQLite with the next `look_up` or
    `flush`, and lasts once the connection commits.
    """

    def __init__(self, connection, near):
        self.connection, self.near = connection, near
        connection.execute("CREATE TABLE IF NOT EXISTS exact (key INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE IF NOT EXISTS bands (key INTEGER PRIMARY KEY, document INTEGER)")
        connection.execute("CREATE TABLE IF NOT EXISTS signatures (document INTEGER PRIMARY KEY, minima BLOB)")
        self.documents = connection.execute("SELECT coalesce(max(document) + 1, 0) FROM signatures").fetchone()[0]
        self.new_exact, self.new_bands, self.new_signatures = set(), {}, {}  # since the last flush
        self.exact, self.bands = set(), {}  # what the tables hold of the batch at hand

    def look_up(self, documents):
        """Fetch what the tables hold of these documents, in a query or two."""
        self.flush()
        self.exact = {key for (key,) in self._rows("SELECT key FROM exact", [document.key for document in documents])}
        keys = [key for document in documents for key in document.bands.tolist()] if self.near else []
        self.bands = dict(self._rows("SELECT key, document FROM bands", keys))

    def _rows(self, query, keys):
        for i in range(0, len(keys), 10_000):  # SQLite takes 32,766 at most
            part = keys[i : i + 10_000]
            yield from self.connection.execute(f"{query} WHERE key IN ({','.join('?' * len(part))})", part)

    def check_in(self, document):
        """"exact duplicate", "near duplicate", or None for a new document, which is remembered."""
        if document.key in self.exact or document.key in self.new_exact:
            return "exact duplicate"
        if self.near:
            keys = document.bands.tolist()
            candidates = {self.bands.get(key, self.new_bands.get(key)) for key in keys} - {None}
            if any(similarity(self._signature(other), document.signature) >= self.near for other in sorted(candidates)):
                return "near duplicate"
            for key in keys:
                self.new_bands.setdefault(key, self.documents)
            self.new_signatures[self.documents] = document.signature
            self.documents += 1
        self.new_exact.add(document.key)
        return None

    def _signature(self, number):
        if number in self.new_signatures:
            return self.new_signatures[number]
        row = self.connection.execute("SELECT minima FROM signatures WHERE document = ?", (number,)).fetchone()
        return np.frombuffer(row[0], "<u2")

    def flush(self):
        """Hand what is new to SQLite, in the order of the keys, which is that on the disk."""
        signatures = [(number, minima.astype("<u2").tobytes()) for number, minima in self.new_signatures.items()]
        insert = self.connection.executemany
        insert("INSERT OR IGNORE INTO exact VALUES (?)", [(key,) for key in sorted(self.new_exact)])
        insert("INSERT OR IGNORE INTO bands VALUES (?, ?)", sorted(self.new_bands.items()))
        insert("INSERT INTO signatures VALUES (?, ?)", signatures)
        self.exact |= self.new_exact
        self.bands |= self.new_bands
        self.new_exact, self.new_bands, self.new_signatures = set(), {}, {}
