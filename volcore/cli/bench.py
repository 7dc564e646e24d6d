"""`volcore bench`: how fast this cluster deploys, with volumes that are deleted again.

Every volume it makes is called `bench-...` and carries the label `volcore-bench`; it touches no
other, and `clean` asks for both. They go past the trash, where the pool has one.
"""

import secrets
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from volcore import limits
from volcore.cli import report
from volcore.cli.output import API_VERSION, say, short, show_facts, show_json
from volcore.cli.session import ImageArgument, PoolOption, YesOption, confirm, connect, size
from volcore.errors import VolcoreError

if TYPE_CHECKING:
    from volcore.client import Client

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure this cluster.")

PREFIX: Final = "bench-"
LABEL: Final = "volcore-bench"
COUNT_MAX: Final = 100_000
CALLERS_MAX: Final = 256
PERCENTILES: Final = (50, 95, 99)


class Form(StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"


@dataclass(slots=True)
class Run:
    """Volumes of one image that are deployed and deleted by some callers.

    What a call did not bring is deleted too: its outcome may be unknown.
    """

    client: "Client"
    image: str
    names: Sequence[str]
    """Resource names of the volumes."""
    callers: int
    calls_s: list[float] = field(default_factory=list)
    errors: list[VolcoreError] = field(default_factory=list)
    deploy_s: float = 0.0
    delete_s: float = 0.0
    _touched: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def deploy(self, batch: int, size_bytes: int) -> None:
        """Deploy all, `batch` in a call, and time each call."""
        groups = [self.names[at : at + batch] for at in range(0, len(self.names), batch)]

        def act(group: Sequence[str]) -> None:
            with self._lock:
                self._touched += group
            start = time.perf_counter()
            found = self._deploy(group, size_bytes)
            spent_s = time.perf_counter() - start
            with self._lock:
                self.calls_s.append(spent_s)
                self.errors += found

        self.deploy_s = self._spread(act, groups)

    def _deploy(self, group: Sequence[str], size_bytes: int) -> list[VolcoreError]:
        marked = {LABEL: ""}
        try:
            if len(group) == 1:
                self.client.create_volume(
                    group[0], image=self.image, size_bytes=size_bytes, labels=marked
                )
                return []
            results = self.client.deploy_volumes(
                self.image, [short(name) for name in group], size_bytes=size_bytes, labels=marked
            )
        except VolcoreError as err:
            return [err]
        return [one for one in results if isinstance(one, VolcoreError)]

    def delete(self) -> None:
        """Delete everything that a call was made for."""

        def act(name: str) -> None:
            try:
                self.client.delete_volume(name, purge=True)
            except VolcoreError as err:
                with self._lock:
                    self.errors.append(err)

        with self._lock:
            touched = list(self._touched)
        self.delete_s = self._spread(act, touched)

    def _spread(self, act: Callable[[Any], None], items: Sequence[Any]) -> float:
        """Do `act` with each item, by all callers; return how long it took.

        A KeyboardInterrupt ends it when the calls that are under way have ended.
        """
        left, stopped = iter(items), threading.Event()

        def work() -> None:
            while not stopped.is_set():
                with self._lock:
                    item = next(left, None)
                if item is None:
                    return
                act(item)

        start = time.perf_counter()
        with ThreadPoolExecutor(self.callers) as pool:
            try:
                for future in [pool.submit(work) for _ in range(self.callers)]:
                    future.result()
            finally:
                stopped.set()
        return time.perf_counter() - start


@app.command("deploy")
def deploy(
    context: typer.Context,
    image: ImageArgument,
    count: Annotated[int, typer.Option(help="Volumes.", min=1, max=COUNT_MAX)] = 100,
    callers: Annotated[
        int, typer.Option(help="Calls at the same time.", min=1, max=CALLERS_MAX)
    ] = 8,
    batch: Annotated[
        int, typer.Option(help="Volumes in one call.", min=1, max=limits.DEPLOY_VOLUMES_MAX)
    ] = 1,
    size_text: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Default: the image's size.")
    ] = None,
    pool: PoolOption = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="Form of the figures.")] = (
        Form.TABLE
    ),
) -> None:
    """Deploy volumes of an image, tell how fast that was, and delete them again.

    Ctrl-C deletes them, too. What a killed run leaves, `volcore bench clean` deletes.
    """
    size_bytes = size(size_text)
    run_name = f"{PREFIX}{secrets.token_hex(4)}"
    with connect(context, pool) as session:
        source = session.client.get_image(session.image(image)).name
        volumes = f"{source.rpartition('/images/')[0]}/volumes/{run_name}"
        names = [f"{volumes}-{number:06}" for number in range(1, count + 1)]
        run = Run(session.client, source, names, callers)
        try:
            run.deploy(batch, size_bytes)
        finally:
            _delete(run)
    _show(run, batch, output)
    if run.errors:
        say(f"{len(run.errors)} failures; the first one:")
        report.report(run.errors[0])
        raise typer.Exit(report.exit_code(run.errors[0]))


def _delete(run: Run) -> None:
    try:
        run.delete()
    except KeyboardInterrupt:
        say("interrupted while deleting; 'volcore bench clean' deletes what is left")
        raise


@app.command("clean")
def clean(context: typer.Context, yes: YesOption = False, pool: PoolOption = None) -> None:
    """Delete what benchmarks that were killed have left."""
    with connect(context, pool) as session:
        marked = session.client.list_volumes(session.pool, filter=f"labels.{LABEL}:*")
        names = [one.name for one in marked if short(one.name).startswith(PREFIX)]
        if names:
            confirm(f"Delete {len(names)} volumes called {PREFIX}...?", yes=yes)
        for name in names:
            session.client.delete_volume(name, purge=True)
    say(f"{len(names)} volumes deleted")


def _show(run: Run, batch: int, output: Form) -> None:
    values = [spent_s * 1e3 for spent_s in run.calls_s]
    cuts = statistics.quantiles(values, n=100, method="inclusive") if values[1:] else values * 99
    figures = {f"p{percent}_ms": round(cuts[percent - 1], 3) for percent in PERCENTILES}
    rate = round((len(run.names) - len(run.errors)) / run.deploy_s, 1)
    if output is Form.JSON:
        show_json(
            {
                "apiVersion": API_VERSION,
                "kind": "DeployBenchmark",
                "image": run.image,
                "volume_count": len(run.names),
                "callers": run.callers,
                "batch": batch,
                **figures,
                "max_ms": round(max(values), 3),
                "volumes_per_s": rate,
                "deleted_per_s": round(len(run.names) / run.delete_s, 1),
                "failures": len(run.errors),
            }
        )
        return
    show_facts(
        [
            ("VOLUMES", f"{len(run.names)} of {short(run.image)}, {batch} in a call"),
            ("CALLERS", str(run.callers)),
            *((f"P{n} OF A CALL", f"{figures[f'p{n}_ms']:.2f} ms") for n in PERCENTILES),
            ("LONGEST", f"{max(values):.2f} ms"),
            ("DEPLOYED", f"{rate:.1f} volumes/s"),
            ("DELETED", f"{len(run.names) / run.delete_s:.1f} volumes/s"),
        ]
    )
