"""A digest as a page: one HTML file that needs nothing else, and its picture as PNG."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import Any

from mpiflux.report.digest import Digest, GroupDigest, stamp

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
h1 { margin-bottom: 0 } h1 + p { margin-top: 0; color: #666 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; border-bottom: 1px solid #ddd }
th { text-align: left; color: #666; font-weight: normal }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
pre { margin: 0; white-space: pre-wrap } img { max-width: 100% }
"""
_RESULTS = ("completed", "failed", "timeout", "canceled", "not done")
_TAIL = 5
"""Lines of a failed job's stderr that are shown."""


def picture(found: Digest) -> bytes:
    """The curves of a run as a PNG. Raises ImportError without Matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    unit, label = ((3600.0, "hours") if found.seconds > 7200 else (60.0, "minutes") if found.seconds > 120
                   else (1.0, "seconds"))
    figure, axes = pyplot.subplots(len(found.curves), 1, figsize=(9, 0.6 + 1.9 * len(found.curves)), squeeze=False,
                                   sharex=True)
    for axis, (name, curve) in zip(axes[:, 0], found.curves.items(), strict=True):
        axis.stairs(curve, found.edges / unit, fill=True, alpha=0.6)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel(f"{label} since the first job started")
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    pyplot.close(figure)
    return data.getvalue()


def page(found: Digest, image: bytes | None) -> str:
    """The whole page; ``image`` is the :func:`picture`, None where there is none."""
    title = escape(found.name or "a run")
    shown = (f'<img alt="utilisation over time" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
             if image is not None else "<p>No picture: Matplotlib is not installed (pip install 'mpiflux[plot]').</p>")
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}: mpiflux report</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{escape(found.directory)}, {escape(found.state)}</p>",
        _facts(found), "<h2>Over time</h2>", shown, "<h2>Jobs</h2>", _groups(found.groups), _failures(found),
        "</body></html>", ""])


def _facts(found: Digest) -> str:
    rate = (found.total - found.ended("not done")) / found.seconds if found.seconds > 0 else 0.0
    rows = [
        ("jobs", f"{found.total:,}: " + ", ".join(f"{n:,} {name}" for name in _RESULTS if (n := found.ended(name)))),
        ("machine", f"{found.nodes}: {found.cores:,} cores, {found.gpus:,} GPUs, {found.ranks:,} ranks"),
        ("first start", stamp(found.begin)),
        ("to the last end", f"{seconds(found.seconds)}, {rate:,.1f} jobs/s"),
        ("cores busy", f"{found.used('cores busy', found.cores):.0%}")]
    if found.gpus:
        rows.append(("GPUs busy", f"{found.used('GPUs busy', found.gpus):.0%}"))
    return _table((), [(escape(name), escape(text)) for name, text in rows])


def _groups(groups: list[GroupDigest]) -> str:
    heads = ("name", "jobs", *_RESULTS, "retried", "waited, median", "longest", "ran, shortest", "median", "longest",
             "CPU", "memory")
    rows = [(escape(one.name), f"{one.total:,}", *(f"{one.ended[name]:,}" for name in _RESULTS), f"{one.retried:,}",
             *map(seconds, (*one.waited, *one.ran, one.cpu)), f"{one.maxrss / 2**20:,.0f} MiB") for one in groups]
    return _table(heads, rows, numbers=True)


def _failures(found: Digest) -> str:
    if not found.failures:
        return ""
    bad = found.ended("failed") + found.ended("timeout")
    rows = [(f"{job['id']}", escape(f"{job['name']}[{job['index']}]"), escape(_how(job)),
             f"<pre>{escape(_tail(job['stderr']))}</pre>") for job in found.failures]
    return f"<h2>The first {len(rows)} of {bad:,} failures</h2>" + _table(("job", "name", "how", "stderr"), rows)


def _how(job: dict[str, Any]) -> str:
    code = job["returncode"]
    return job["reason"] or (f"signal {-code}" if code < 0 else f"exit status {code}")


def _tail(text: str) -> str:
    lines = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_TAIL:])


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]], numbers: bool = False) -> str:
    def line(cells: tuple[str, ...], kind: str) -> str:
        return "<tr>" + "".join(f'<{kind}{" class=n" if numbers and at else ""}>{cell}</{kind}>'
                                for at, cell in enumerate(cells)) + "</tr>"

    top = [line(heads, "th")] if heads else []
    return "\n".join(["<table>", *top, *(line(row, "td") for row in rows), "</table>"])


def seconds(value: float) -> str:
    """A duration in a column of durations."""
    if math.isnan(value):
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1000:.3g} ms"
