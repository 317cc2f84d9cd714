"""The connection to a cluster of Ray that runs already."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from pymixtral.arguments import shown
from pymixtral.errors import InvalidArgumentError, UnsupportedError

_HOW = (
    "start one with `ray start --head` here, and with `ray start --address=HOST:6379` on each other host; all need "
    "one token (`ray get-auth-token --generate`)"
)


def check_ray() -> None:
    """Check that Ray is there.

    Raises:
        UnsupportedError: if it is missing.
    """
    if find_spec("ray") is None:
        raise UnsupportedError("expected the package ray, found none: install it with `pip install 'pymixtral[ray]'`")


def connect(address: str = "auto") -> bool:
    """Connect this process to a cluster, unless it is connected.

    Call it in the main thread, and before handlers of signals are set: Ray sets its own.

    Args:
        address: HOST:PORT of its head; "auto": RAY_ADDRESS, or the cluster that this host is one of.

    Returns:
        Whether it was not connected before.

    Raises:
        InvalidArgumentError: if there is no such cluster, or the token is not its own.
        UnsupportedError: if it has another version of Ray or of Python, or Ray is missing.
    """
    check_ray()
    import ray
    from ray.exceptions import AuthenticationError, RayError

    if ray.is_initialized():
        return False
    if address != "auto" and (not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal()):
        raise InvalidArgumentError(f"expected the address of a cluster as HOST:PORT, found {shown(address)}: {_HOW}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise InvalidArgumentError(
            f"expected the token of the cluster at {address}, found none or another one: copy ~/.ray/auth_token of "
            "its head, or set RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
        ) from None
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        if isinstance(error, RuntimeError) and "mismatch" in str(error):
            raise UnsupportedError(
                f"expected the versions of Ray and Python of the cluster, found others: {' '.join(str(error).split())}"
            ) from None
        first = str(error).strip().partition("\n")[0].rstrip(". ")
        raise InvalidArgumentError(f"expected a cluster of Ray, found none at {address} ({first}): {_HOW}") from None
    return True


def host_cpus() -> list[int]:
    """List the CPUs of each host of the cluster that has some."""
    import ray

    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [n for n in counts if n]
