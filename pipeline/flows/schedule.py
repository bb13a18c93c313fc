"""When a deployment runs, checked before anything is started."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from prefect._vendor.croniter import CroniterError, croniter
from prefect.schedules import Cron, Interval, Schedule

# Seconds. A runner asks the server for due runs about this often.
SHORTEST = 10.0


def cron(expression: str, zone: str) -> Schedule:
    """A cron schedule in a time zone of the IANA, such as `Europe/Berlin`.

    Raises `ValueError` if the expression or the zone is wrong, or if the schedule names no date that exists.
    """
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{zone!r} is no time zone of the IANA, such as 'Europe/Berlin'") from None
    try:
        schedule = Cron(expression, timezone=zone)
        following(schedule)
    except (ValueError, CroniterError) as error:
        raise ValueError(f"{expression!r} is no cron schedule that can fire: {error}") from None
    return schedule


def every(seconds: float) -> Schedule:
    """One run each so many seconds.

    Raises `ValueError` if the interval is no finite number of at least `SHORTEST`.
    """
    try:
        interval = timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise ValueError(f"{seconds} s is no interval") from None
    if interval < timedelta(seconds=SHORTEST):
        raise ValueError(f"an interval must be at least {SHORTEST:g} s; got {seconds:g}")
    return Interval(interval)


def following(schedule: Schedule) -> datetime:
    """The first time of a cron schedule from now on, in its time zone."""
    assert schedule.cron is not None
    assert schedule.timezone is not None
    return croniter(schedule.cron, datetime.now(ZoneInfo(schedule.timezone))).get_next(datetime)
