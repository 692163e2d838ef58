"""The makers of GPUs as data: whose engine it is, which variables choose GPUs, and how they appear in /dev."""

from __future__ import annotations

from dataclasses import dataclass

from installer.spec.facts import Gpu


@dataclass(frozen=True)
class Vendor:
    name: str  # as a Gpu has it
    title: str  # as people write it
    kind: str  # the build of vLLM for its GPUs
    variables: tuple[str, ...]  # that choose GPUs; the first takes their uuids
    nodes: tuple[str, ...]  # of all its GPUs, for where which is whose is not known
    nodes_beside: tuple[str, ...]  # that an engine needs as well
    device_classes: tuple[str, ...]  # as /proc/devices names the drivers of all these nodes
    groups: tuple[str, ...] = ()  # that may open them
    shared_nodes: tuple[str, ...] = ()  # without which none of its GPUs can be used
    driver: str = ""  # what is there while the driver is loaded
    minimum_capability: tuple[int, int] = (0, 0)
    targets: frozenset[str] = frozenset()  # what vLLM has kernels for, where the vendor names it so
    reserved: int = 0  # bytes that the driver keeps for itself, and its tools count
    reserved_share: float = 0.0  # the same on large GPUs
    image: str = ""  # vLLM's own, with the packages for its GPUs
    unified_image: str = ""  # the vendor's, for GPUs whose memory is the host's; its tags name no version of vLLM
    resource: str = ""  # what a cluster counts its GPUs as
    names_devices: bool = False  # whether containers are given its GPUs by that name and their uuids, and not as nodes

    def serves(self, gpu: Gpu) -> bool:
        """Whether its build of vLLM has kernels for this GPU."""
        return gpu.vendor == self.name and (not self.targets or gpu.arch in self.targets)


NVIDIA = Vendor(
    name="nvidia",
    title="NVIDIA",
    kind="cuda",
    variables=("CUDA_VISIBLE_DEVICES",),
    nodes=tuple(f"/dev/nvidia{number}" for number in range(16)),
    nodes_beside=(
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-modeset",
        "/dev/nvidia-caps",
        "/dev/nvidia-caps-imex-channels",
    ),
    device_classes=(
        "nvidia",
        "nvidia-frontend",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-caps",
        "nvidia-caps-imex-channels",
    ),
    shared_nodes=("/dev/nvidiactl", "/dev/nvidia-uvm"),
    driver="/proc/driver/nvidia/version",
    minimum_capability=(7, 5),
    # 469 MiB of an H100's 81559, 616 of an H200's 143771; vLLM's share is of the rest.
    reserved=450 * 1024**2,
    reserved_share=0.0043,
    image="docker.io/vllm/vllm-openai",
    unified_image="nvcr.io/nvidia/vllm",
    resource="nvidia.com/gpu",
    names_devices=True,
)
AMD = Vendor(
    name="amd",
    title="AMD",
    kind="rocm",
    # vLLM for ROCm takes no uuid in HIP_VISIBLE_DEVICES (0.32.0); ROCm's runtime takes one in its own variable.
    variables=("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    nodes=("/dev/dri",),
    nodes_beside=("/dev/kfd",),
    device_classes=("kfd", "drm"),
    groups=("video", "render"),
    # The small GPUs inside desktop processors are not among them.
    targets=frozenset(["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1150", "gfx1151", "gfx1200", "gfx1201"]),
    image="docker.io/vllm/vllm-openai-rocm",
    resource="amd.com/gpu",
)
CPU_IMAGE = "docker.io/vllm/vllm-openai-cpu"
VENDORS = (NVIDIA, AMD)  # where a host has GPUs of both, the first is preferred
KINDS = (*(vendor.kind for vendor in VENDORS), "cpu")  # of engines
VARIABLES = tuple(dict.fromkeys(name for vendor in VENDORS for name in vendor.variables))


def of_kind(kind: str | None) -> Vendor | None:
    """None for the engine that needs no GPU."""
    return next((vendor for vendor in VENDORS if vendor.kind == kind), None)


def variables_of(kind: str) -> tuple[str, ...]:
    vendor = of_kind(kind)
    return vendor.variables if vendor else ()


def image_of(kind: str, version: str) -> str:
    """vLLM's own image for a kind of engine, of that version; each is there for x86_64 and aarch64."""
    vendor = of_kind(kind)
    return f"{vendor.image if vendor else CPU_IMAGE}:v{version}"


def is_uuid(text: str) -> bool:
    """Whether a GPU is named as the engine's own variables take it, and as it is named after every start."""
    return text.startswith(("GPU-", "MIG-"))
