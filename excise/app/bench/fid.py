"""FID and KID of a run's pictures through torch-fidelity, where the user has it (it brings torchvision along)."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from excise.bench.results import BASELINE, fault_of
from excise.bench.run import Record, Run, Unit
from excise.bench.worker import picture_of
from excise.errors import ExciseError, MissingExtra

PICTURES = (".png", ".jpg", ".jpeg")
"""Files that torch-fidelity reads."""
LEAST = 2048
"""Pictures a side below which no FID is given: as many as its features have dimensions, or the covariance it compares
has no full rank, and what is printed is mostly the number of pictures. KID has no such bias."""
LEAST_KID = 50
"""Pictures a side below which KID is not given either."""
KID_SUBSET = 1000
"""Pictures of one of KID's subsets, as Bińkowski et al. 2018 have it; fewer where there are fewer."""


def fid(run: Run, label: str, against: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """FID (Heusel et al. 2017) and KID of a method's pictures, and the set they are compared with, by name.

    That set is the unerased model's pictures of the same prompts and seeds, as SNCE's Table 1 has it, or the pictures
    in the folder `against`, such as real photographs. With fewer than 2,048 pictures on a side `fid` is None. Raises
    ExciseError without torch-fidelity, for a method that is not in the run, or with fewer than 50 pictures on a side.
    """
    if label not in run.plan["methods"]:
        raise ExciseError(f"{run.folder} has no method {label!r}; it has {', '.join(run.plan['methods'])}")
    sides = {f"{label} of {run.folder}": len(sound(run, label))}
    if against is None:
        sides[f"{BASELINE} of {run.folder}"] = len(sound(run, BASELINE))
    else:
        sides[str(against)] = len(pictures_in(against))
    for name, n in sides.items():
        if n < LEAST_KID:
            raise ExciseError(f"{name}: {n} pictures; KID needs {LEAST_KID} and FID {LEAST:,} a side; draw more")
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
    """Link a method's sound pictures into one new folder; how many."""
    folder.mkdir()
    records = sound(run, label)
    for record in records:
        path = _picture(run, record)
        (folder / f"{record['concept']}.{path.name}").symlink_to(path.resolve())
    return len(records)


def sound(run: Run, label: str) -> list[Record]:
    """A method's records whose picture is there and not broken."""
    own = [record for record in run.records() if record["method"] == label]
    return [r for r in own if _picture(run, r).exists() and fault_of(r, _picture(run, r)) is None]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, as torch-fidelity finds them. Raises ExciseError where there is no such folder."""
    if not folder.is_dir():
        raise ExciseError(f"{folder} is no folder of pictures; name one with --against")
    return [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]


def _picture(run: Run, record: Record) -> Path:
    return picture_of(run, Unit(record["method"], record["concept"]), record["case"])
