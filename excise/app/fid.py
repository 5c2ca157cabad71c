"""FID and KID of a run's pictures through torch-fidelity, where the user has it (it brings torchvision along)."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from excise.bench.results import BASELINE
from excise.bench.run import Run, Unit
from excise.bench.worker import picture_of
from excise.errors import ExciseError

KID_SUBSET = 1000
"""Pictures of one of KID's subsets, as Bińkowski et al. 2018 have it; fewer where there are fewer."""


def fid(run: Run, label: str, against: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """FID (Heusel et al. 2017) and KID of a method's pictures, and the set they are compared with, by name.

    That set is the unerased model's pictures of the same prompts and seeds, as SNCE's Table 1 has it, or the pictures
    in the folder `against`, such as real photographs. Raises ExciseError without torch-fidelity, for a method that is
    not in the run, or with fewer than 2 pictures.
    """
    if label not in run.plan["methods"]:
        raise ExciseError(f"{run.folder} has no method {label!r}; it has {', '.join(run.plan['methods'])}")
    try:
        torch_fidelity = import_module("torch_fidelity")
    except ImportError as error:
        raise ExciseError("FID needs torch-fidelity; install it with: pip install 'excise[fid]'") from error
    with tempfile.TemporaryDirectory() as temporary:
        own, others = (Path(temporary) / name for name in ("own", "others"))
        n = gather(run, label, own)
        if against is None:
            gather(run, BASELINE, others)
        measured = torch_fidelity.calculate_metrics(
            input1=str(own),
            input2=str(against or others),
            fid=True,
            kid=True,
            kid_subset_size=min(KID_SUBSET, n),
            cuda=device.startswith("cuda"),
            verbose=False,
        )
    return {
        "method": label,
        "against": str(against) if against else f"{BASELINE}, same prompts and seeds",
        "pictures": n,
        "fid": measured["frechet_inception_distance"],
        "kid": measured["kernel_inception_distance_mean"],
    }


def gather(run: Run, label: str, folder: Path) -> int:
    """Link a method's recorded pictures into one new folder; how many. Raises ExciseError for fewer than 2."""
    folder.mkdir()
    records = [record for record in run.records() if record["method"] == label]
    for record in records:
        path = picture_of(run, Unit(label, record["concept"]), record["case"])
        (folder / f"{record['concept']}.{path.name}").symlink_to(path.resolve())
    if len(records) < 2:
        raise ExciseError(f"{run.folder} has {len(records)} pictures of {label}; a distance needs many more")
    return len(records)
