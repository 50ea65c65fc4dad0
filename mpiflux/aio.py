"""The asynchronous interface: ``flux = await mpiflux.aio.connect()``. See :mod:`mpiflux.client.aio`."""

from mpiflux.client.aio import Flux, Item, Job, Jobs, Kvs, Queue, Service, Subscription, connect

__all__ = ["Flux", "Item", "Job", "Jobs", "Kvs", "Queue", "Service", "Subscription", "connect"]
