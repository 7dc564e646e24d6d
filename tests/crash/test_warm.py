"""The server dies at every step of keeping and claiming warm clones: all or nothing, no leak."""

import contextlib
from functools import partial

import pytest

from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume
from volcore.errors import VolcoreError
from volcore.limits import MIB
from volcore.model.records import Image, State, Volume, WarmClone
from volcore.testing.crash import Crash, CrashingBackend, CrashingCatalog, CrashSwitch
from volcore.testing.intents import intents_of

SIZE = 8 * MIB
MAX = 8


def start(backend, catalog, *, count_max: int = MAX) -> Engine:
    """A started server; its keeper works when it is told to."""
    engine = Engine(EngineSettings(server_id="test"))
    engine.add_pool("p", backend, catalog, None, warm_clones_max=count_max)
    engine.lookout.close(5)  # nobody closes this engine, and a look outlives a test
    return engine


def keep(engine: Engine) -> None:
    """Let the keeper do all that there is to do, and what is deleted be freed."""
    while engine.warm.step(engine.pools.open("p")):
        pass
    assert engine.deletions.wait(60)
    intents_of(engine.pools.open("p"))  # dies if the process died meanwhile


def deploy(engine: Engine, *names: str) -> None:
    for result in engine.volumes.deploy("p", "gold", names):
        if isinstance(result, VolcoreError):
            raise result


def prepare(engine: Engine) -> None:
    """An image with four clones in stock."""
    engine.volumes.create("p", CreateVolume(name="src", size_bytes=SIZE))
    engine.snapshots.create("p", "src", "s")
    engine.images.publish("p", "gold", "src", "s")
    deploy(engine, "old")
    keep(engine)


def drain(engine: Engine) -> None:
    """Claim all, so that the keeper has to make some."""
    deploy(engine, "a", "b", "c", "d")
    keep(engine)


def delete_image(engine: Engine) -> None:
    engine.images.delete("p", "gold")
    keep(engine)


SCENARIOS = {
    "claim one": lambda engine: deploy(engine, "a"),
    "claim all": lambda engine: deploy(engine, "a", "b", "c", "d"),
    "refill": drain,
    "delete image": delete_image,
}


def check_whole(engine: Engine) -> None:
    """The backend holds what volumes, images and READY clones name, each once."""
    pool = engine.pools.open("p")
    assert intents_of(pool) == []
    volumes, images, clones = pool.list(Volume), pool.list(Image), pool.list(WarmClone)
    assert all(r.state is State.READY for r in [*volumes, *images, *clones])
    named = [v.backend_id for v in [*volumes, *clones]] + [i.backend_volume_id for i in images]
    assert len(named) == len(set(named))
    assert set(pool.backend.walk()) == set(named)
    figures = engine.pools.get("p")
    assert figures.volume_count == len(volumes)
    assert figures.warm_clones.ready_count == len(clones) <= MAX
    assert {clone.image_id for clone in clones} <= {image.id for image in images}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_at_every_step(scenario):
    """Kill at step 1, 2, 3 until the scenario ends; recovery and keeper are killed at each, too."""
    act, at = SCENARIOS[scenario], 0
    while True:
        at += 1
        backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
        backend.open()
        prepare(start(backend, catalog))
        switch = CrashSwitch(at)
        with contextlib.suppress(Crash):
            act(start(CrashingBackend(backend, switch), CrashingCatalog(catalog, switch)))
        if not switch.crashed:
            assert at > 2, "the scenario passed no step at all"
            return
        for again in range(1, 100):
            second = CrashSwitch(again)
            try:
                keep(start(CrashingBackend(backend, second), CrashingCatalog(catalog, second)))
            except Crash:
                continue
            break
        engine = start(backend, catalog)
        keep(engine)
        check_whole(engine)
        act(engine)
        keep(engine)
        check_whole(engine)
        keep(start(backend, catalog, count_max=0))
        assert engine.pools.open("p").list(WarmClone) == []
        assert sum(name.startswith("warm-") for name in backend.walk()) == sum(
            volume.backend_id.startswith("warm-") for volume in engine.volumes.list("p", limit=99)
        )


def test_a_claim_is_one_commit():
    """Nothing else is written, for one volume or many; a repeat writes nothing."""
    for names in (["a"], ["a", "b", "c"]):
        backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
        backend.open()
        prepare(start(backend, catalog))
        switch = CrashSwitch()
        engine = start(CrashingBackend(backend, switch), CrashingCatalog(catalog, switch))
        deploy(engine, *names)
        assert switch.steps == 2
        made = engine.volumes.list("p", limit=10)
        assert [v.name for v in made if v.backend_id.startswith("warm-gold.")] == names
        deploy(engine, *names)
        assert switch.steps <= 4  # one commit that was refused
        assert engine.volumes.list("p", limit=10) == made


def test_refused_claims_lose_nothing():
    """Names that exist, a relabelled image: made otherwise, and the stock is what it was."""
    backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
    backend.open()
    engine = start(backend, catalog)
    prepare(engine)
    pool = engine.pools.open("p")
    warm = partial(engine.pools.get, "p")
    deploy(engine, "old", "a")
    assert warm().warm_clones.ready_count == 4
    image = pool.image("gold")
    relabelled = image.but(labels={"k": "v"})
    from volcore.engine.pool import put

    catalog.commit([put(relabelled, image)])
    deploy(engine, "b")
    assert not engine.volumes.get("p", "b").backend_id.startswith("warm-")
    assert warm().warm_clones.ready_count == 4
    deploy(engine, "c")
    assert engine.volumes.get("p", "c").backend_id.startswith("warm-")
    keep(engine)
    check_whole(engine)
