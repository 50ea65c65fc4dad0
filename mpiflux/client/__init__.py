"""What user programs import: the jobs and keys of the run they are part of, or of a run directory."""

from mpiflux.client.flux import Flux, Job, Kvs, NoJob, NotConnected, connect
from mpiflux.store.eventlog import Event

__all__ = ["Event", "Flux", "Job", "Kvs", "NoJob", "NotConnected", "connect"]
