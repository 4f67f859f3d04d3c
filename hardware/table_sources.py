"""Where the recorded tables come from. None of these files is part of this package: each has its own licence and its own home."""

from __future__ import annotations

from nas.tables import Source

_HAT, _HAT_COMMIT = "github.com/mit-han-lab/hardware-aware-transformers", "70e5a279"


def _hat(name: str, sha256: str) -> Source:
    return Source(_HAT, _HAT_COMMIT, f"latency_dataset/{name}", "MIT", f"hat/{name}", sha256)


HAT_RASPBERRYPI = _hat("wmt14ende_cpu_raspberrypi_all.csv", "28d7d0557b545ceefe0234fedad81b4c503edc211a10a9b3a08ba19523ca7cdb")
HAT_XEON = _hat("wmt14ende_cpu_xeon_all.csv", "78c0cef3a590b0efce13f2c5cb338453644d09c056359cbdaed606c513657d60")
HAT_TITANXP_WMT = _hat("wmt14ende_gpu_titanxp_all.csv", "7ce39663e513a90ab56cf2911c43977e2b4f426c787a25acaeb5e346fa913e1f")
HAT_TITANXP_IWSLT = _hat("iwslt14deen_gpu_titanxp_all.csv", "96448ac6ab174e5fccbc668614acc279f842b182fe035c05c3940ad46a5c2f86")
HAT_GTX1080 = Source(
    "github.com/GeYouheng/hardware-aware-transformers",
    "e1ea131a",
    "energy_dataset/",
    "MIT",
    "hat_gtx1080_energy/energy_gtx1080.csv",
    "1bbfff6f106b6601fdc496b1fffca8d853b0b42c5f1dc22b1588e590e74a99bb",
    is_copy=False,
)
VIT_BLOCKS = Source(
    "github.com/microsoft/nn-Meter",
    "9c31e190",
    "nn_meter/predictor/transformer_predictor/lut/",
    "MIT",
    "nnmeter_vit_lut/vit_block_lut.csv.gz",
    "caa399ac4d538eb7f965f6949d3eca9e173bbdddfc26195fc241a61af5af995e",
    is_copy=False,
)
JETSON_NANO = Source(
    "github.com/Deeplite/deeplite-torch-zoo",
    "e4c8ea68",
    "results/clsbench/",
    "Apache-2.0",
    "yolobench/jetson_nano_timm.csv",
    "8f5cbd6fd7d1d794fe1515b8c9fe341a54f0b8cbc7327a0cdf009ca282699186",
    is_copy=False,
)
QUALCOMM = Source(
    "github.com/quic/ai-hub-models",
    "52c080d2",
    "qai_hub_models/models/*/perf.yaml",
    "BSD-3-Clause",
    "qualcomm_aihub/qai_hub_perf.csv",
    "fac9e778ad01c0fc87bc55b90584e31b87bd73409cebd95b1ebd76f2224c83c3",
    is_copy=False,
)
AWS = Source(
    "github.com/philschmid/aws-neuron-samples",
    "381667c7",
    "benchmark/results/",
    "MIT",
    "aws_inferentia/aws_transformer_latency.csv",
    "0468eb3ec89986ef82aa65e0c9b1b2bed919dafb824855e96c5749d760aa70fe",
    is_copy=False,
)
NETSPRESSO = Source(
    "github.com/Nota-NetsPresso/netspresso-trainer",
    "cdefe125",
    "docs/benchmarks/device_matrix/",
    "Apache-2.0",
    "netspresso/device_matrix.csv",
    "f13bee5a6359195edb6d29ba5f8301fd21981ae5a0fb93e303b501bcae00894f",
    is_copy=False,
)
NEUSIGHT = Source(
    "github.com/sitar-lab/NeuSight",
    "6945927d",
    "",
    "MIT",
    "neusight_gpu/e2e_transformers.csv",
    "02c8dc399ad7c2156fa16c0bb0e67b54160bafbb7abff93502a364742f26c340",
    is_copy=False,
)
LTS = Source(
    "github.com/microsoft/archai",
    "47770415",
    "",
    "MIT",
    "lts_archai/lts_models.csv.gz",
    "a762829af324e253daf50a9b708c837b76a4565d1dd04f97b47352e2dc85ec21",
    is_copy=False,
)
NASBENCH201 = Source(
    "github.com/HayeonLee/HELP",
    "45f70eb9",
    "data/nasbench201/latency/",
    "MIT",
    "help/nasbench201_latency.csv.gz",
    "a976d889f57ad172f17f83533ddac04331f55e148b540b9ae50ed74d49b51238",
    is_copy=False,
)
