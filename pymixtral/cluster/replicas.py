"""Replicas: engines of one model on the hosts of a cluster, and the application in front of them."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from pymixtral import __version__
from pymixtral.cluster.connection import connect, head_answers, host_cpus
from pymixtral.cluster.front import Front
from pymixtral.cluster.presence import present
from pymixtral.cluster.replica import About, Replica
from pymixtral.cluster.router import PrefixRouter
from pymixtral.errors import InvalidArgumentError
from pymixtral.escapes import escaped
from pymixtral.server.service import Service
from pymixtral.server.settings import Settings

if TYPE_CHECKING:
    from pymixtral.mixtral import Mixtral

_DEPLOYMENT = "Replica"

_LOAD = 0.7
"""Requests that a replica should have, over those that it computes together: more start another one."""

_END_SECONDS = 600.0
"""How long the answers of a replica that is not needed any more may take to end."""

_HEALTH_SECONDS = 3.0
"""From one question whether a replica's engine computes to the next. The third no ends it."""


class Replicas:
    """Serves a model by several engines, for pymixtral.server.serve.run(): it is `Served`. Make it where connect() may
    be called.

    Each engine is an actor of Ray Serve, which starts another one where one dies or its engine has a
    fault. The application runs in this process and listens where this process listens; Serve's own
    proxies are not used.

    Args:
        open_model: opens the model on a host; it is called with `n_threads`. It must be a function that
            another process can import, or a partial of one.
        settings: the names and limits.
        address: as for pymixtral.cluster.connection.connect().
        n: how many engines there are, least and most: between them Serve decides by the requests that
            run and wait. None: one on each host.
        n_threads: threads of each engine, and the CPUs that it takes of its host; None: all CPUs of the
            smallest host.
        n_hosts: hosts of each engine, which takes these CPUs of each.
        by_prefix: as for Front.
        autoscaling: more fields of ray.serve.config.AutoscalingConfig.

    Raises:
        InvalidArgumentError: for numbers that make no sense, for a folder of adapters (requests would
            load an adapter into one engine, and ask another), and as connect() does.
    """

    def __init__(
        self,
        open_model: Callable[..., Mixtral],
        settings: Settings,
        *,
        address: str = "auto",
        n: tuple[int, int] | None = None,
        n_threads: int | None = None,
        n_hosts: int = 1,
        by_prefix: bool = True,
        autoscaling: Mapping[str, Any] | None = None,
    ) -> None:
        if n is not None and not 1 <= n[0] <= n[1]:
            raise InvalidArgumentError(f"expected replicas to be N or MIN:MAX of at least 1, found {n[0]}:{n[1]}")
        if settings.adapter_folder is not None:
            raise InvalidArgumentError(
                "expected adapters that are loaded from the beginning, found a folder that requests may load from: "
                "they would load into one replica and ask another; name them where the model is opened"
            )
        self._open_model = open_model
        self._settings = settings
        self._connected = connect(address)
        self._n = n
        self._n_threads, self._n_hosts = n_threads, n_hosts
        self._by_prefix = by_prefix
        self._autoscaling = dict(autoscaling or {})
        self._front: Front | None = None
        self._handle: Any = None
        self._about: About | None = None
        self._n_ready = 0
        self._presence: Any = None
        self._watching: asyncio.Task[None] | None = None
        parts = ("pymixtral", re.sub(r"[^A-Za-z0-9_.-]", "-", settings.name), secrets.token_hex(4))
        self.name = "-".join(filter(None, parts))

    # --- Served -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the replicas, and wait until all that there are at first are ready.

        Raises:
            InvalidArgumentError: if no host has the CPUs, or a replica cannot open the model.
        """
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        least, most, n_threads = self._size()
        serve.start(proxy_location="Disabled")
        self._presence = present()
        try:
            self._handle = serve.run(self._application(least, most, n_threads), name=self.name, route_prefix=None)
        except RuntimeError as error:
            raise InvalidArgumentError(
                f"expected replicas that open the model, found that {self._reason(error)}"
            ) from None
        self._about, self._n_ready = self._handle.about.remote().result(), self.count()

    def app(self, service: Service) -> ASGIApp:
        """Make the application.

        Args:
            service: has the names and limits.
        """
        self._front = Front(service, self._by_prefix)
        return self._front.app

    def begin(self, service: Service) -> str:
        """Begin to pass requests on.

        Args:
            service: as for app().

        Returns:
            What is ready, for people.
        """
        assert self._front
        assert self._about
        service.name = self._about.name
        self._front.count, self._front.handle = self.count, self._handle
        self._watching = asyncio.get_running_loop().create_task(self._front.watch(head_answers))
        n = self._n_ready
        adapters = f"; adapters: {', '.join(map(escaped, self._about.adapters))}" if self._about.adapters else ""
        replicas = "1 replica" if n == 1 else f"{n} replicas"
        return f"{escaped(service.name)}, {self._about.n_ctx} tokens of context, {replicas}{adapters}"

    def close(self) -> None:
        """End the replicas. Where the head of the cluster is gone or stopped, nobody is there who could."""
        import ray
        from ray import serve

        if head_answers(speaks=True):
            if self._presence is not None:
                with suppress(TimeoutError):  # Serve goes on with it
                    serve.delete(self.name)
                ray.kill(self._presence)
            if self._connected:
                ray.shutdown()
        self._presence, self._connected = None, False

    # --- Parts ------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many replicas run; 0 where the cluster does not know."""
        deployment = self._status()
        return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0

    def _status(self) -> Any:
        """What Ray Serve says of the deployment; None: there is none."""
        from ray import serve

        application = serve.status().applications.get(self.name)
        return application.deployments.get(_DEPLOYMENT) if application else None

    def _size(self) -> tuple[int, int, int]:
        """The least and the most replicas, and the threads of each."""
        hosts = host_cpus()
        n_threads = self._n_threads or min(hosts, default=1)
        fitting = sum(n // n_threads for n in hosts) // self._n_hosts * (len(hosts) >= self._n_hosts)
        wanted = min(fitting, len(hosts) // self._n_hosts)
        least, most = self._n or (wanted, wanted)
        if not fitting or least > fitting:
            replicas = "a replica" if least <= 1 else f"{least} replicas"
            where = f" on each of {self._n_hosts} hosts" if self._n_hosts > 1 else ""
            raise InvalidArgumentError(
                f"expected room for {replicas} of {n_threads} CPU{'s' * (n_threads > 1)}{where}, found hosts with "
                f"{', '.join(map(str, hosts)) or 'no'} CPUs: give fewer replicas or n_threads, or add hosts"
            )
        return least, most, n_threads

    def _application(self, least: int, most: int, n_threads: int) -> Any:
        """The application as Ray Serve has it."""
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig

        settings = self._settings
        how_many: dict[str, Any] = {"num_replicas": least}
        if most > least:
            target = max(_LOAD * settings.max_batch, 1.0)
            how_many = {
                "autoscaling_config": AutoscalingConfig(
                    min_replicas=least, max_replicas=most, target_ongoing_requests=target, **self._autoscaling
                )
            }
        deployment = serve.deployment(
            name=_DEPLOYMENT,
            ray_actor_options={"num_cpus": n_threads},
            max_ongoing_requests=2 * settings.max_batch,
            max_queued_requests=max(settings.max_waiting, 1),  # 0: each would be one too many
            graceful_shutdown_timeout_s=_END_SECONDS,
            health_check_period_s=_HEALTH_SECONDS,
            health_check_timeout_s=60,
            max_constructor_retry_count=2,
            request_router_config=RequestRouterConfig(
                request_router_class=PrefixRouter,
                request_router_kwargs={"slack": max(settings.max_batch // 2, 1)},
            ),
            **how_many,
        )(Replica)
        inner = replace(settings, keys=(), cors_origins=(), loopback=False)
        return deployment.bind(self._open_model, n_threads, inner, __version__, self._presence)

    def _reason(self, error: RuntimeError) -> str:
        """Why replicas do not start: the sentence of our own in what Serve says, or the end of that."""
        deployment = self._status()
        text = (deployment.message if deployment else "") or str(error)
        found = re.findall(r"pymixtral\.errors\.\w+: (.+)", text) or text.strip().splitlines()
        return escaped(str(found[-1]).strip())
