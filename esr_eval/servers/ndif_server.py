"""What runs inside the NDIF server's own environment: a model actor for the CPU, and its launch.

This file is copied to where the server's Python finds it; it imports nothing of this project.
"""

import argparse
import json
from typing import Any

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class OnCpu(BaseModelDeployment):  # type: ignore[misc]
    """NDIF's model actor without its CUDA calls."""

    CACHEABLE = False

    def load_from_disk(self) -> HuggingFaceModel:
        """Load the weights into main memory."""
        # The controller has handed out a GPU that is none.
        self.gpu_mem_bytes_by_id: dict[int, int] = {}
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        """Make ready for the next request."""
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()


class OnCpuSandboxed(OnCpu, SandboxModelDeployment):  # type: ignore[misc]
    """The same, with every request's code in a process of its own, as NDIF does by default."""

    async def run(self, request: Any) -> None:
        """Run a request as one of a stranger."""
        request.trusted = False
        await super().run(request)

    def cleanup(self) -> None:
        """Discard the request's process and make ready for the next."""
        self.discard_sandbox()
        super().cleanup()


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuModelActor(OnCpu):
    """The CPU actor under Ray."""


@ray.remote(num_cpus=1, max_restarts=-1)
class SandboxedCpuModelActor(OnCpuSandboxed):
    """The sandboxed CPU actor under Ray."""


def launch(address: str, spec: dict[str, Any]) -> None:
    """Start the controller, deploy one model, and return when it is ready.

    Raises:
        RuntimeError: The model could not be deployed.
    """
    from ndif.cli.lib.deploy import deploy
    from ndif.services.ray.deployments.controller.controller import app

    ray.init(address=address, namespace="NDIF", logging_level="error")
    app()
    done = deploy([spec], ray_address=f"ray://{address}", on_message=print)
    failed = [entry for entry in done["deployments"] if entry["status"] != "READY"]
    if failed:
        raise RuntimeError(f"not deployed: {failed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--spec", required=True)
    args = parser.parse_args()
    launch(args.address, json.loads(args.spec))
