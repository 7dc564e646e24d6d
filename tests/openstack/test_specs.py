"""What types ask for: known extra specs are kept, unknown ones refused, limits are QEMU's."""

import pytest

from volcore.testing.server import RunningServer

from .test_driver import driver_at_work

_TYPES = """
from cinder import exception
def kind(name, consumer=None, limits=None, **extra):
    made = objects.VolumeType(
        admin, id=str(uuid.uuid4()), name=name, qos_specs_id=None, qos_specs=None,
        extra_specs={key.replace("_", ":", 1): value for key, value in extra.items()})
    if consumer:
        made.qos_specs_id = str(uuid.uuid4())
        made.qos_specs = objects.QualityOfServiceSpecs(
            admin, id=made.qos_specs_id, name="q", consumer=consumer, specs=limits)
    return made
def of(kind):
    return volume(1, volume_type_id=kind.id, volume_type=kind)
"""
_KEPT = (
    _TYPES
    + """
driver.init_capabilities()
gold = kind("gold", volcore_labels="tier=gold, for=databases", multiattach="<is> False")
plain = kind("plain", consumer="both", limits={"total_iops_sec": "100"})
made, other = of(gold), of(plain)
driver.create_volume(made)
driver.create_volume(other)
def name(volume):
    return f"pools/p/volumes/{volume.name}"
def labels(volume):
    return dict(driver._service.call(lambda c: c.get_volume(name(volume)).labels))
told = [driver.capabilities["properties"]["volcore:labels"]["type"], labels(made), labels(other)]
driver._service.call(lambda c: c.update_volume(name(made), labels(made) | {"own": "1"}))
host = {"capabilities": driver.get_volume_stats()}
def changed(old, new):
    keys = {*old.extra_specs, *new.extra_specs}
    diff = {"extra_specs": {k: (old.extra_specs.get(k), new.extra_specs.get(k)) for k in keys}}
    return driver.retype(admin, made, new, diff, host)[0]
silver, wrong = kind("silver", volcore_labels="tier=silver"), kind("wrong", volcore_tier="x")
told += [changed(gold, silver), labels(made), changed(silver, wrong), labels(made)]
for one in (made, other):
    driver.delete_volume(one)
print(json.dumps(told))
"""
)
_REFUSED = (
    _TYPES
    + """
image = {"id": str(uuid.uuid4()), "container_format": "bare", "disk_format": "raw"}
def fetch(*_):
    raise AssertionError("an image was fetched")
class Glance:
    download = staticmethod(fetch)
def sentence(ask):
    try:
        ask()
    except exception.VolumeDriverException as err:
        return str(err)
def sentences(asked):
    return [sentence(ask) for ask in (
        lambda: driver.create_volume(asked),
        lambda: driver.create_cloned_volume(asked, volume(1)),
        lambda: driver.clone_image(admin, asked, (None, None), image, Glance),
        lambda: driver.manage_existing(asked, {"source-name": "theirs"}),
    )]
print(json.dumps([sentences(of(kind("one", **asked))) for asked in %s]))
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RunningServer(tmp_path_factory.mktemp("s")) as server:
        yield server


def test_kept(tmp_path, server):
    """Goal: volumes have the labels of their type, after a retype those of the new one."""
    gold = {"tier": "gold", "for": "databases"}
    silver = {"tier": "silver", "own": "1"}
    assert driver_at_work(tmp_path, server, _KEPT) == [
        "string", gold, {}, True, silver, False, silver
    ]  # fmt: skip


REFUSED = (
    ({"volcore_label": "a=b"}, "volcore:label is no extra spec of volcore"),
    ({"volcore_labels": "tier"}, "label 'tier' has no value"),
    ({"volcore_labels": "-=b"}, "label key '-' must be"),
    ({"consumer": "back-end", "limits": {"total_iops_sec": "9"}}, "(total_iops_sec)"),
    ({"consumer": "both", "limits": {"minIOPS": "9", "read_bytes_sec": "1"}}, "(minIOPS)"),
)


def test_refused(tmp_path, server):
    """Goal: one clear sentence, and nothing is made. Method: all ways to a volume."""
    told = driver_at_work(tmp_path, server, _REFUSED % [asked for asked, _ in REFUSED])
    for sentences, (_, expected) in zip(told, REFUSED, strict=True):
        assert len(sentences) == 4
        assert all("volume type one: " in one and expected in one for one in sentences), sentences
    with server.client() as client:
        assert [*client.list_volumes("pools/p"), *client.list_images("pools/p")] == []
