"""Figures that He et al. published for SNCE, row by row, to compare yours with.

`A Single Neuron Works` (He, Weng, Tao and Xue), Tables 1 to 4. Errors are kept as printed, and listed in `SLIPS`.
"""

from __future__ import annotations

TABLE_1_COLUMNS = (
    "Breast(F)", "Genitalia(F)", "Breast(M)", "Genitalia(M)", "Buttocks", "Feet", "Belly", "Armpits", "Total", "CS",
    "FID",
)  # fmt: skip
TABLE_1: dict[str, tuple[float | None, ...]] = {
    "SD1.4": (183, 21, 46, 10, 44, 42, 171, 129, 646, 31.34, None),
    "SD2.1": (121, 13, 40, 3, 14, 39, 146, 109, 485, 31.53, None),
    "ESD": (14, 1, 8, 5, 5, 24, 31, 33, 121, 30.90, 16.88),
    "SLD-Med": (47, 72, 3, 21, 39, 1, 26, 3, 212, 30.65, 19.53),
    "UCE": (31, 6, 19, 8, 11, 20, 55, 36, 186, 29.92, 22.87),
    "SA": (39, 9, 4, 0, 15, 32, 49, 15, 163, 30.57, 18.37),
    "CA": (6, 1, 9, 10, 4, 14, 28, 23, 95, 31.21, 21.55),
    "MACE": (19, 1, 2, 2, 2, 15, 24, 37, 102, 29.32, 23.45),
    "SPM": (4, 0, 0, 5, 9, 12, 4, 22, 56, 31.01, 16.64),
    "RECE": (8, 0, 6, 4, 0, 8, 23, 17, 66, 30.95, 18.25),
    "DuMo": (1, 4, 0, 6, 2, 7, 6, 8, 34, 30.87, None),
    "SNCE top-1": (3, 0, 4, 0, 0, 2, 10, 6, 25, 30.97, 15.85),
    "SNCE top-10": (4, 1, 5, 0, 0, 1, 11, 2, 23, 30.89, 16.53),
    "SNCE top-20": (3, 1, 4, 0, 0, 0, 6, 3, 17, 30.87, 16.64),
}
"""NudeNet above 0.6 on I2P's 4,703 prompts; CLIP score, and FID to Stable Diffusion's pictures, on 3,000 captions."""

TABLE_2: dict[str, dict[str, int]] = {
    "SD1.4": {"CSA(F)": 204, "CSA(M)": 56, "CSA": 304},
    "ESD": {"CSA(F)": 15, "CSA(M)": 13, "CSA": 33},
    "SLD": {"CSA(F)": 119, "CSA(M)": 24, "CSA": 182},
    "UCE": {"CSA(F)": 37, "CSA(M)": 27, "CSA": 75},
    "RECE": {"CSA(F)": 8, "CSA(M)": 10, "CSA": 18},
    "SNCE": {"CSA(F)": 3, "CSA(M)": 4, "CSA": 7},
}
"""Table 1's counts without feet, belly and armpits."""

TABLE_3: dict[str, dict[str, float]] = {
    "SD1.4": {"I2P(N)": 17.8, "I2P(V)": 40.1, "P4D": 98.7, "Ring-A-Bell": 83.1},
    "ESD": {"I2P(N)": 14.0, "I2P(V)": 16.7, "P4D": 63.3, "Ring-A-Bell": 69.7},
    "SLD": {"I2P(N)": 11.5, "I2P(V)": 19.7, "P4D": 77.5, "Ring-A-Bell": 66.2},
    "UCE": {"I2P(N)": 10.3, "I2P(V)": 23.3, "P4D": 80.2, "Ring-A-Bell": 33.1},
    "RECE": {"I2P(N)": 6.34, "I2P(V)": 14.2, "P4D": 64.7, "Ring-A-Bell": 13.4},
    "SNCE": {"I2P(N)": 1.50, "I2P(V)": 17.7, "P4D": 42.6, "Ring-A-Bell": 6.32},
}
"""Attack success in per cent: NudeNet above 0.45 and λ 1.0; for violence Q16 and λ 1.2."""

TABLE_4: dict[float, float] = {0.6: 4.29, 0.7: 3.43, 0.8: 1.82, 1.0: 1.50, 1.2: 1.28}
"""λ to attack success on I2P, in per cent."""

UNLEARNCANVAS_COLUMNS = ("style UA", "style IRA", "style CRA", "object UA", "object IRA", "object CRA", "mean")
UNLEARNCANVAS: dict[str, tuple[float, ...]] = {
    "ESD": (98.58, 80.97, 93.96, 92.15, 55.78, 44.23, 77.61),
    "UCE": (98.40, 60.22, 47.71, 94.31, 39.35, 34.67, 62.45),
    "CA": (60.82, 96.01, 92.70, 46.67, 90.11, 81.97, 78.05),
    "SalUn": (86.26, 90.39, 95.08, 86.91, 96.35, 99.59, 92.43),
    "SPM": (60.94, 92.39, 84.33, 71.25, 90.79, 81.65, 80.23),
    "SAeUron": (95.80, 99.10, 99.40, 87.16, 85.57, 74.14, 90.10),
    "SAEmnesia": (96.60, 98.67, 99.30, 94.65, 91.39, 88.48, 94.85),
}
"""Accuracies in per cent on UnlearnCanvas, as SAEmnesia's repository prints them."""
UNLEARNCANVAS_SLIPS = ("the mean of SAeUron's six figures is 90.19, printed is 90.10",)

SLIPS = (
    "Table 1: the classes of SNCE top-10 sum to 24, printed is 23",
    "Table 3 mixes protocols: SD1.4's 17.8, 98.7 and 83.1, UCE's 10.3 and 33.1, and RECE's 6.34 and 13.4 are those of "
    "SAFREE and TRCE, with other detectors and thresholds",
    "the text says that a smaller λ erases more; Table 4 says, rightly, the opposite",
)


def sums_of_table_1() -> dict[str, tuple[int, int]]:
    """Return, by row, the sum of its eight classes and the printed total."""
    return {name: (int(sum(n or 0 for n in row[:8])), int(row[8] or 0)) for name, row in TABLE_1.items()}


def means_of_unlearncanvas() -> dict[str, tuple[float, float]]:
    """Return, by row, the mean of its six accuracies and the printed mean."""
    return {name: (round(sum(row[:6]) / 6, 2), row[6]) for name, row in UNLEARNCANVAS.items()}
