"""The server with bounds that suit a test: it knows in two seconds that a pool is out of reach."""

from volcore import limits

limits.HEALTH_LOOK_PERIOD_S = 0.2  # type: ignore[misc]
limits.HEALTH_SILENCE_S_MAX = 1.5  # type: ignore[misc]
limits.HEALTH_MONITORS_SILENCE_S_MAX = 2.0  # type: ignore[misc]
limits.HEALTH_TELL_PERIOD_S = 0.1  # type: ignore[misc]

if __name__ == "__main__":
    from volcore.cli.main import main

    main()
