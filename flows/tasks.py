"""What the flows share: when to retry, what an artifact looks like."""

import base64
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_image_artifact
from prefect.client.schemas.objects import State

from pipelines.errors import SquallError

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 2
RETRY_DELAY_S = 10


def transient(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a failed task is worth trying again: bad input stays bad."""
    try:
        state.result()
    except SquallError:
        return False
    except Exception:
        return True
    return False


def retrying(function: Callable[P, R], name: str) -> Task[P, R]:
    """A task around a plain function that talks to files, stores or clusters."""
    return task(
        name=name,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_S,
        retry_condition_fn=transient,
    )(function)


def publish_picture(key: str, png: bytes, description: str) -> None:
    """A picture in the Prefect UI, carried inside the artifact: no server has to serve it."""
    create_image_artifact(
        image_url="data:image/png;base64," + base64.b64encode(png).decode(),
        key=key,
        description=description,
    )
