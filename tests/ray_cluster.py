"""A Ray cluster on loopback: a head that runs no task, and nodes that a test adds and removes."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from unittest import mock

_ENVIRONMENT = {  # Ray reads it once, when it is imported
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # without one, Ray writes a token to the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on those systems: 127.0.0.1 stays 127.0.0.1
}
_NODE = {
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 100 << 20,
    "include_dashboard": False,
    "dashboard_agent_listen_port": None,
}


class RayCluster:
    """A head without CPUs, for drivers to connect to.

    Attributes:
        environment: what a driver needs in its environment to use the cluster.
    """

    def __init__(self, folder):
        os.environ.update(_ENVIRONMENT)
        from ray.cluster_utils import Cluster

        (folder / "ray").mkdir()
        self.environment = {**_ENVIRONMENT, "RAY_TMPDIR": str(folder)}
        with mock.patch.dict(os.environ, self.environment):
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_NODE})
        self.environment["RAY_ADDRESS"] = self._cluster.address

    def add_node(self, **environment):
        """Add a node of 2 CPUs; its workers have these variables in their environment, too."""
        with mock.patch.dict(os.environ, self.environment | environment):
            return self._cluster.add_node(num_cpus=2, **_NODE)

    def kill_node(self, node):
        """End a node as a lost machine ends."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self):
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster():
    """Start a cluster, in a folder with a short path: Ray has sockets in it."""
    with tempfile.TemporaryDirectory(prefix="m2f-ray-", ignore_cleanup_errors=True) as folder:
        cluster = RayCluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.shutdown()
