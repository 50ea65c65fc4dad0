"""The operations of a transaction, for ``flux.kvs.commit`` and ``flux.kvs.fence``: all of them are done, or none.

``put(key, value)`` sets a key to JSON or bytes; ``Delete(key, recursive=False)`` removes it, ``Rename(key, to)`` moves
it and what is below it; ``Check(key, version)`` raises :class:`mpiflux.Conflict` unless the key has that version (0: it
does not exist). They are done in order, so each sees what those before it did.
"""

from mpiflux.store.kvs import Check, Delete, Op, Rename, put

__all__ = ["Check", "Delete", "Op", "Rename", "put"]
