"""A device that is new: what ten measurements of it are worth when others are known, one device at a time left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from experiments.benchmarks.splits import judged, mape, random_splits
from hardware.tables import TABLES, load_table
from latency_models.onboarding import NewDevice, OtherDevices
from latency_models.physical import PhysicalRegressor
from latency_models.stacking import mixture
from nas.tables import RecordedTable
from search_spaces import hat

NUM_ONBOARDING = 10  # measurements of a new device
FEWEST_MODELS = 30
CELLS = 3000  # of NAS-Bench-201 that each split is judged on


def onboard_hat(tables: Mapping[str, RecordedTable], splits: int) -> dict[str, float]:
    """Each device as a new one among the others; beside a stack of the others' predictions."""
    figures, rhos = {}, []
    names = ("pi", "xeon", "titanxp")
    prices = {n: PhysicalRegressor().fit(hat.costs(tables[n].rows), tables[n].values).prices_ for n in names}
    for name in names:
        costs, times = hat.costs(tables[name].rows), tables[name].values
        known = [prices[other] for other in names if other != name]
        error, rho = judged(lambda known=known: NewDevice(known), costs, times, NUM_ONBOARDING, splits)  # type: ignore[misc]
        figures[f"onboarding_hat_{name}_mape_10"] = error
        rhos.append(rho)
        figures[f"onboarding_hat_{name}_alone_mape_10"], _ = judged(PhysicalRegressor, costs, times, NUM_ONBOARDING, splits)
        figures[f"onboarding_hat_{name}_stack_mape_10"], _ = judged(
            lambda known=known: OtherDevices(known), costs, times, NUM_ONBOARDING, splits  # type: ignore[misc]
        )  # fmt: skip
    return {**figures, "onboarding_hat_spearman_10": min(rhos)}


def onboard_cells(folder: Path | None, splits: int) -> dict[str, float]:
    """Each NAS-Bench-201 device as a new one, its times as a mixture of the others'; beside ridge regression on them."""
    names = [name for name in TABLES if name.startswith("nb201_")]
    logs = np.log(np.stack([load_table(name, folder).values for name in names], axis=1))
    ours, ridge = [], []
    for target in range(len(names)):
        others, own = np.delete(logs, target, axis=1), logs[:, target]
        found = []
        for train, test in random_splits(len(own), NUM_ONBOARDING, min(splits, 5)):
            test = test[:CELLS]
            weights, _ = mixture(others[train], own[train], shift=True)
            regression = RidgeCV(np.logspace(-3, 3, 13)).fit(others[train], own[train])
            predicted = others[test] @ weights, regression.predict(others[test])
            found.append([float(spearmanr(p, own[test]).statistic) for p in predicted])
        mean = np.median(found, axis=0)
        ours.append(mean[0])
        ridge.append(mean[1])
    return {"onboarding_nb201_spearman_10": float(np.mean(ours)), "onboarding_nb201_ridge_spearman_10": float(np.mean(ridge))}


def onboard_npus(folder: Path | None, splits: int) -> dict[str, float]:
    """Each Snapdragon device as a new one, among those of its runtime and precision; models that all of them ran on the NPU."""
    figures = {}
    for precision in ("float", "w8a8"):
        ours, scale, num = [], [], 0
        for runtime in ("qnn_dlc", "tflite", "onnx"):
            names = [n for n in TABLES if n.startswith("qualcomm_") and n.endswith(f"_{precision}_{runtime}")]
            logs = _common([load_table(name, folder) for name in names])
            num += logs.size
            for target in range(logs.shape[1]):
                others, own = np.delete(logs, target, axis=1), logs[:, target]
                errors = []
                for train, test in random_splits(len(own), NUM_ONBOARDING, splits):
                    weights, shift = mixture(others[train], own[train], shift=True)
                    mean = others.mean(axis=1)
                    one_scale = mean[test] + np.median(own[train] - mean[train])
                    predicted = others[test] @ weights + shift, one_scale
                    errors.append([mape(np.exp(p), np.exp(own[test])) for p in predicted])
                mine, theirs = np.median(errors, axis=0)
                ours.append(mine)
                scale.append(theirs)
        figures[f"onboarding_npu_{precision}_mape_10"] = float(np.mean(ours))
        figures[f"onboarding_npu_{precision}_one_scale_mape_10"] = float(np.mean(scale))
        figures[f"onboarding_npu_{precision}_num_times"] = num
    return figures


def _common(tables: Sequence[RecordedTable]) -> np.ndarray:
    """Logarithms of the times of all rows that every table has and that ran on the NPU alone, [rows, tables].

    Tables of fewer than `FEWEST_MODELS` such rows are left out: their device ran little of this runtime.
    """
    times: list[dict[tuple[str, str], float]] = []
    for table in tables:
        on_npu = (np.asarray(table.extra["layers_cpu"]) == 0) & (np.asarray(table.extra["layers_gpu"]) == 0)
        keys = zip(table.labels, table.extra["input"], strict=True)
        times.append({key: value for key, value, kept in zip(keys, table.values, on_npu, strict=True) if kept})
    times = [t for t in times if len(t) >= FEWEST_MODELS]
    shared = sorted(set.intersection(*(set(t) for t in times)))
    return np.log([[t[key] for t in times] for key in shared])
