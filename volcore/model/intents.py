"""What multi-step changes set out to do; `records.Intent` is one that is under way."""

from enum import StrEnum


class IntentAction(StrEnum):
    """What a multi-step change sets out to do; recovery knows each."""

    CREATE_VOLUME = "CREATE_VOLUME"
    """Of servers before; rolled back. Now it is MAKE_VOLUME."""
    MAKE_VOLUME = "MAKE_VOLUME"
    """The record says READY already; rolled forward if the backend has the volume."""
    DELETE_VOLUME = "DELETE_VOLUME"
    CREATE_SNAPSHOT = "CREATE_SNAPSHOT"
    DELETE_SNAPSHOT = "DELETE_SNAPSHOT"
    CREATE_GROUP_SNAPSHOT = "CREATE_GROUP_SNAPSHOT"
    DELETE_GROUP_SNAPSHOT = "DELETE_GROUP_SNAPSHOT"
    CREATE_IMAGE = "CREATE_IMAGE"
    DELETE_IMAGE = "DELETE_IMAGE"
    RESIZE_VOLUME = "RESIZE_VOLUME"
    REVERT_VOLUME = "REVERT_VOLUME"
    ADOPT_VOLUME = "ADOPT_VOLUME"
    RELEASE_VOLUME = "RELEASE_VOLUME"
