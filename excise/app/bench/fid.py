"""FID and KID of a run's pictures, by torch-fidelity (an extra, since it installs torchvision)."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from excise.bench.items.cases import picture_of
from excise.bench.results import BASELINE, fault_of
from excise.bench.run import Record, Run, Unit
from excise.errors import ExciseError, MissingExtra

PICTURES = (".png", ".jpg", ".jpeg")
"""Files that torch-fidelity reads."""
LEAST = 2048
"""Fewest pictures in either set for FID: the dimension of its features. With fewer, the covariance is rank deficient
and FID depends mostly on the number of pictures. KID does not have this bias."""
LEAST_KID = 50
"""Fewest pictures in either set for KID."""
KID_SUBSET = 1000
"""Pictures in each of KID's subsets, as in Bińkowski et al. 2018, or all pictures if there are fewer."""


def fid(run: Run, label: str, against: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Compute FID (Heusel et al. 2017) and KID between a method's pictures and another set.

    The other set is the unerased model's pictures of the same prompts and seeds, as in SNCE's Table 1, or the pictures
    in the folder `against`, such as real photographs. `fid` is None with fewer than 2,048 pictures in either set.

    Raises:
        ExciseError: torch-fidelity is not installed, the method is not in the run, or either set has fewer than 50
            pictures.
    """
    if label not in run.plan["methods"]:
        raise ExciseError(f"{run.where()} has no method {label!r}; it has {', '.join(run.plan['methods'])}")
    sides = {f"{label} of {run.where()}": len(sound(run, label))}
    if against is None:
        sides[f"{BASELINE} of {run.where()}"] = len(sound(run, BASELINE))
    else:
        sides[str(against)] = len(pictures_in(against))
    for name, n in sides.items():
        if n < LEAST_KID:
            raise ExciseError(
                f"{name}: {n} pictures; KID needs {LEAST_KID} and FID {LEAST:,} in each set; generate more"
            )
    enough = min(sides.values()) >= LEAST
    try:
        torch_fidelity = import_module("torch_fidelity")
    except ImportError as error:
        raise MissingExtra("FID needs torch-fidelity; install it with: pip install 'excise[fid]'") from error
    with tempfile.TemporaryDirectory() as temporary:
        own, others = (Path(temporary) / name for name in ("own", "others"))
        n = gather(run, label, own)
        if against is None:
            gather(run, BASELINE, others)
        measured = torch_fidelity.calculate_metrics(
            input1=str(own),
            input2=str(against or others),
            fid=enough,
            kid=True,
            kid_subset_size=min(KID_SUBSET, *sides.values()),
            cuda=device.startswith("cuda"),
            verbose=False,
        )
    return {
        "method": label,
        "against": str(against) if against else f"{BASELINE}, same prompts and seeds",
        "pictures": n,
        "others": list(sides.values())[1],
        "fid": measured["frechet_inception_distance"] if enough else None,
        "kid": measured["kernel_inception_distance_mean"],
    }


def gather(run: Run, label: str, folder: Path) -> int:
    """Link a method's valid pictures into a new folder. Return how many."""
    folder.mkdir()
    records = sound(run, label)
    for record in records:
        path = _picture(run, record)
        (folder / f"{record['concept']}.{path.name}").symlink_to(path.resolve())
    return len(records)


def sound(run: Run, label: str) -> list[Record]:
    """Return the method's records whose picture exists and is not broken."""
    records = [record for record in run.records() if record["method"] == label]
    return [r for r in records if _picture(run, r).exists() and fault_of(r, _picture(run, r)) is None]


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, as torch-fidelity finds them. Raises ExciseError if it is not a folder."""
    if not folder.is_dir():
        raise ExciseError(f"{folder} is not a folder of pictures; name one with --against")
    return [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]


def _picture(run: Run, record: Record) -> Path:
    return picture_of(run, Unit(record["method"], record["concept"]), record["case"])
