"""Instance types of clouds, and which of them hold a model.

The table has the current series of AWS, Google Cloud and Azure for general use, from 4 vCPUs on,
whose CPUs run the fast kernels: AVX-512 with VNNI, or ARM's 8-bit matrix products. Each series
comes with 2, 4 and 8 GiB a vCPU. It has no prices, which change daily and differ between regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymixtral.model.footprint import Footprint

GATHERED = "2026-11-30"
"""The day on which the table was gathered."""

SOURCES = {
    "aws": "EC2's DescribeInstanceTypes as the Python package moto 5.2.5 has it, of October 2026",
    "gcp": "Compute Engine's list of machine types as Cyclenerd/google-cloud-pricing-cost-calculator has it",
    "azure": "the pages of virtual machine sizes in MicrosoftDocs/azure-compute-docs, of January to March 2026",
}
"""By cloud, where its sizes come from. CPUs are those that the providers name."""


@dataclass(frozen=True)
class Instance:
    """One instance type.

    Attributes:
        cloud: "aws", "gcp" or "azure".
        name: as the cloud names it.
        vcpus: hardware threads; of some series two of them share a core.
        gib: memory, in GiB.
        cpu: maker and generation.
        isa: the instruction set of pymixtral that runs there.
    """

    cloud: str
    name: str
    vcpus: int
    gib: int
    cpu: str
    isa: str

    @property
    def usable(self) -> int:
        """Bytes of memory that a model can have.

        A GiB and 4% are left for the machine's firmware, the kernel, its services and the agents of
        a cluster. That is an allowance, and nothing that was measured.
        """
        return int(self.gib * 0.96 * (1 << 30)) - (1 << 30)

    def contexts(self, memory: Footprint) -> int:
        """How many texts that fill the context have room at the same time; 0: the model does not fit."""
        return max(0, (self.usable - memory.weights - memory.working) // memory.kv)


_GRANITE = "Intel Granite Rapids", "avx512vbmi"
_EMERALD = "Intel Emerald Rapids", "avx512vbmi"
_TURIN = "AMD Turin", "avx512vbmi"
_GRAVITON = "AWS Graviton4", "neon_i8mm"
_AXION = "Google Axion", "neon_i8mm"
_COBALT = "Azure Cobalt 100", "neon_i8mm"

# By cloud: the name, with {} for the size; the CPU; GiB by vCPUs.
_SERIES: dict[str, list[tuple[str, tuple[str, str], dict[int, int]]]] = {
    "aws": [
        ("c8i", _GRANITE, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192, 128: 256, 192: 384, 384: 768}),
        ("m8i", _GRANITE, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384, 128: 512, 192: 768, 384: 1536}),
        ("r8i", _GRANITE, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 96: 768, 128: 1024, 192: 1536, 384: 3072}),
        ("c8a", _TURIN, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192, 192: 384}),
        ("m8a", _TURIN, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384, 192: 768}),
        ("r8a", _TURIN, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 96: 768, 192: 1536}),
        ("c8g", _GRAVITON, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192, 192: 384}),
        ("m8g", _GRAVITON, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384, 192: 768}),
        ("r8g", _GRAVITON, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 96: 768, 192: 1536}),
    ],
    "gcp": [
        ("c4-highcpu-{}", _EMERALD, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 96: 192, 192: 384}),
        ("c4-standard-{}", _EMERALD, {4: 15, 8: 30, 16: 60, 32: 120, 48: 180, 96: 360, 192: 720}),
        ("c4-highmem-{}", _EMERALD, {4: 31, 8: 62, 16: 124, 32: 248, 48: 372, 96: 744, 192: 1488}),
        ("c4d-highcpu-{}", _TURIN, {4: 7, 8: 15, 16: 30, 32: 60, 48: 90, 64: 120, 96: 180, 192: 360, 384: 720}),
        ("c4d-standard-{}", _TURIN, {4: 15, 8: 31, 16: 62, 32: 124, 48: 186, 64: 248, 96: 372, 192: 744, 384: 1488}),
        ("c4d-highmem-{}", _TURIN, {4: 31, 8: 63, 16: 126, 32: 252, 48: 378, 64: 504, 96: 756, 192: 1512, 384: 3024}),
        ("c4a-highcpu-{}", _AXION, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 72: 144}),
        ("c4a-standard-{}", _AXION, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 72: 288}),
        ("c4a-highmem-{}", _AXION, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 72: 576}),
    ],
    "azure": [
        ("D{}ls_v6", _EMERALD, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192, 128: 256}),
        ("D{}s_v6", _EMERALD, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384, 128: 512, 192: 768}),
        ("E{}s_v6", _EMERALD, {4: 32, 8: 64, 16: 128, 20: 160, 32: 256, 48: 384, 64: 512, 96: 768, 128: 1024}),
        ("D{}als_v7", _TURIN, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192, 128: 256, 160: 320}),
        ("D{}as_v7", _TURIN, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384, 128: 512, 160: 640}),
        ("E{}as_v7", _TURIN, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 96: 768, 128: 1024, 160: 1280}),
        ("D{}pls_v6", _COBALT, {4: 8, 8: 16, 16: 32, 32: 64, 48: 96, 64: 128, 96: 192}),
        ("D{}ps_v6", _COBALT, {4: 16, 8: 32, 16: 64, 32: 128, 48: 192, 64: 256, 96: 384}),
        ("E{}ps_v6", _COBALT, {4: 32, 8: 64, 16: 128, 32: 256, 48: 384, 64: 512, 96: 672}),
    ],
}


def _name(cloud: str, series: str, vcpus: int) -> str:
    """AWS counts in sizes of 4 vCPUs: xlarge, 2xlarge and so on. The others name the vCPUs."""
    if cloud == "aws":
        return f"{series}.{vcpus // 4 if vcpus > 4 else ''}xlarge"
    return ("Standard_" if cloud == "azure" else "") + series.format(vcpus)


SERIES = [
    [Instance(cloud, _name(cloud, series, vcpus), vcpus, gib, *cpu) for vcpus, gib in sizes.items()]
    for cloud, all_of_it in _SERIES.items()
    for series, cpu, sizes in all_of_it
]
"""The table: the sizes of each series, the smallest first."""


def smallest(memory: Footprint) -> list[Instance]:
    """Choose the instances that hold a model.

    Args:
        memory: what the model takes, as pymixtral.model.footprint computes it.

    Returns:
        Of each series the smallest size that holds it, by cloud, memory and vCPUs. A series that is
        too small throughout is left out.
    """
    fitting = (next((size for size in sizes if size.contexts(memory)), None) for sizes in SERIES)
    order = list(SOURCES)
    return sorted(filter(None, fitting), key=lambda one: (order.index(one.cloud), one.gib, one.vcpus, one.name))
