"""The last one of the run: nothing is left, and no log has an error that no user caused."""

import pytest

from .conftest import errors

# What the tests ask for that cannot be: to delete a volume or a group in use, or one snapshot of a
# group; to attach a volume of a local pool; to freeze a group in an rbd pool; to manage what is not
# there; images that are unsafe, too large or not what Glance promised; to attach with a
# cinder-volume that is killed meanwhile.
EXPECTED = (
    "Unable to delete busy volume",
    "use a type of an rbd pool",
    "Delete group failed",
    "must not be part of a group",
    "cannot freeze several volumes",
    "there is no rbd image absent",
    ": manage failed.",
    "is unacceptable: ",
    "did not arrive whole from Glance",
    "Upload volume to image encountered an error",
    "Timed out waiting for a reply to message ID",
)


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_nothing_is_left(site, backend):
    """Goal: pool and catalog are empty when all volumes and imported images are deleted."""
    site.forget_images(backend)
    assert site.leftovers(backend) == []


@pytest.mark.parametrize("service", ["api", "scheduler", "volume"])
def test_no_errors_in_cinder(site, service):
    """Goal: Cinder had nothing to complain about."""
    found = errors(site.rig.log(service))
    expected = (*EXPECTED, *site.expected)
    assert [one for one in found if not any(text in one for text in expected)] == []


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_no_errors_in_the_server(site, backend):
    """Goal: neither had the server."""
    lines = site.servers[backend].log().splitlines()
    assert [line for line in lines if '"level": "error"' in line or "Traceback" in line] == []
