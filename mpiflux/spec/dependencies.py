"""Whether the jobs of a workflow can follow each other as they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice

from mpiflux.model.jobspec import JobGroup
from mpiflux.spec.problems import shorten


def dependency_mistakes(groups: Sequence[JobGroup], names: Sequence[str], uncounted: Set[str],
                        suggest: Callable[[str, Iterable[str]], str]) -> Iterator[tuple[str, str, str]]:
    """(job name, which it names, message) for dependencies on nothing, in a ring, or between lengths that do not match.

    ``names`` are all jobs of the file, also those that could not be read; ``uncounted`` those whose parameters could
    not; ``suggest`` gives the rest of a message: "; did you mean …?", or nothing."""
    by_name = {group.name: group for group in groups}
    known = set(names)
    for group in groups:
        for dependency in group.after:
            if dependency.kind == "begin":
                continue
            if dependency.group not in known:
                yield group.name, dependency.group, (
                    f"after: there is no job {shorten(dependency.group)}"
                    f"{suggest(dependency.group, islice((n for n in names if n != group.name), 1000))}")
                continue
            other = by_name.get(dependency.group)
            if dependency.kind != "each" or other is None or {group.name, other.name} & uncounted:
                continue
            if other.count != group.count:
                yield group.name, other.name, (
                    f"after: each pairs elements, but {other.name} has {other.count:,} and {group.name} has "
                    f"{group.count:,}")
            elif other.request.per_node != group.request.per_node:
                yield group.name, other.name, "after: each pairs elements, but only one of the two is 'per: node'"
    edges = {group.name: [d.group for d in group.after if d.group in by_name] for group in groups}
    for ring in _rings(edges):
        if len(ring) == 1:
            yield ring[0], ring[0], f"after: job {ring[0]} waits for itself"
        else:
            yield ring[0], ring[1], (
                f"after: these jobs wait for each other in a ring: {' -> '.join([*ring, ring[0]])}")


def _rings(edges: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Rings, at least one of each tangle; without recursion, because chains may be long."""
    done: set[str] = set()
    for root in edges:
        if root in done:
            continue
        path: list[str] = [root]
        place = {root: 0}
        iterators = [iter(edges[root])]
        while path:
            following = next(iterators[-1], None)
            if following is None:
                iterators.pop()
                name = path.pop()
                del place[name]
                done.add(name)
            elif following in place:
                yield path[place[following]:]
            elif following not in done:
                place[following] = len(path)
                path.append(following)
                iterators.append(iter(edges[following]))
