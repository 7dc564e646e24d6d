"""Volumes with contents that tests know."""

MIB = 1 << 20
GIB = 1 << 30


def written(site, backend, *contents, size=1):
    """A volume with these contents, 1 MiB each, one after another in time."""
    volume = site.cinder.create("volume", size=size, volume_type=backend)
    rewrite(site, backend, volume, *contents)
    return volume


def rewrite(site, backend, volume, *contents):
    with site.disk(backend, volume) as disk:
        for content in contents:
            disk.write(0, content)


def has(site, backend, volume, content, size=1):
    with site.disk(backend, volume) as disk:
        assert disk.read(0, MIB) == content
        assert disk.read(size * GIB - MIB, MIB) == bytes(MIB)
