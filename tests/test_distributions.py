"""The two distributions as published: contents, sizes, and that each works when installed."""

from __future__ import annotations

import filecmp
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_house import ROOT

pytest.importorskip("build", reason="pip install build hatchling")
pytest.importorskip("hatchling", reason="pip install build hatchling")

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".npy", ".onnx", ".gguf")
CODE_MB, DATA_MB = 2, 100
"""Size limits of the wheels in MB. The index's default limit is 100 MB."""
MISSING = "error: this needs the bundled model, which is not installed; pip install 'excise[reference]'"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


def built(project: Path, out: Path, kind: str) -> Path:
    """Build a wheel or an sdist, and return its path. A release passes its files in EXCISE_DIST."""
    name, ending = ("excise-[0-9]*" if project == ROOT else "excise_reference-*"), {"wheel": ".whl", "sdist": ".tar.gz"}
    if ready := os.environ.get("EXCISE_DIST"):
        (path,) = Path(ready, "dist" if project == ROOT else "dist-reference").glob(name + ending[kind])
        return path
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out / kind, project]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    (path,) = (out / kind).glob(name + ending[kind])
    return path


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return built(ROOT, dist, "wheel")


@pytest.fixture(scope="module")
def data_wheel(dist: Path) -> Path:
    return built(ROOT / "reference", dist, "wheel")


class Installed:
    """Fresh environment that uses this one's dependencies without its editable installs."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / ("Lib" if os.name == "nt" else f"lib/{version}") / "site-packages"
        borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (self.packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
        self.work = folder / "work"
        self.work.mkdir()

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.scripts / "python"]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", wheel], check=True, capture_output=True)

    def excise(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command in an empty folder, away from the source tree."""
        own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        command = [self.scripts / "excise", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.work, env=own)


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return an environment with the first distribution and without the second."""
    made = Installed(tmp_path_factory.mktemp("venv") / "alone")
    made.install(wheel)
    return made


def test_the_first_has_all_of_the_code_and_no_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert wheel.stat().st_size <= CODE_MB * 1e6
    assert not [name for name in names if name.endswith((*WEIGHTS, ".png", ".gz")) or "/tests/" in name]
    tracked = subprocess.run(["git", "ls-files", "excise"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(tracked) <= names and "excise/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "excise-reference<0.2,>=0.1; extra == 'reference'" in metadata.replace('"', "'")


def test_versions_and_licence_texts_agree() -> None:
    import yaml
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib")
    own, data = (tomllib.loads((ROOT / f).read_text()) for f in ("pyproject.toml", "reference/pyproject.toml"))
    (needed,) = own["project"]["optional-dependencies"]["reference"]
    assert Requirement(needed).name == data["project"]["name"]
    assert Requirement(needed).specifier.contains(data["project"]["version"])
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == own["project"]["version"]
    assert filecmp.cmp(ROOT / "LICENSE", ROOT / "reference" / "LICENSE", shallow=False)


@pytest.mark.parametrize("words", [("--help",), ("methods",), ("concepts",)])
def test_what_needs_no_model_works_without_the_second(alone: Installed, words: tuple[str, ...]) -> None:
    done = alone.excise(*words)
    assert done.returncode == 0, done.stderr


def test_an_eraser_is_checked_without_the_second(alone: Installed, gun_eraser: object, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "gun")  # type: ignore[attr-defined]
    done = alone.excise("verify", "--files-only", tmp_path / "gun")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("reference", "train", "--work", "made"),
        pytest.param(("erase", "gun", "--out", "made"), marks=pytest.mark.slow),
        pytest.param(("bench", "run", "canvas", "--size", "quick", "--out", "made"), marks=pytest.mark.slow),
        pytest.param(("demo", "--out", "made"), marks=pytest.mark.slow),
        pytest.param(("generate", "--prompt", "a gun", "--out", "made.png"), marks=pytest.mark.slow),
        pytest.param(("neurons", "build", "--out", "made.db"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_what_needs_the_bundled_model_says_so_in_one_line(alone: Installed, words: tuple[str, ...]) -> None:
    done = alone.excise(*words)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == MISSING
    assert "Traceback" not in done.stderr and not [*alone.work.iterdir()]


def test_another_version_of_the_second_is_refused(wheel: Path, tmp_path: Path) -> None:
    other = Installed(tmp_path / "other")
    other.install(wheel)
    for name, text in (
        ("excise_reference/__init__.py", ""),
        (
            "excise_reference-0.3.dist-info/METADATA",
            "Metadata-Version: 2.4\nName: excise-reference\nVersion: 0.3\n",
        ),
    ):
        path = other.packages / name
        path.parent.mkdir()
        path.write_text(text)
    done = other.excise("reference", "train", "--work", "made")
    assert done.returncode == 2 and not (other.work / "made").exists()
    error = done.stderr.strip().splitlines()[-1]
    assert "needs excise-reference<0.2,>=0.1, but 0.3 is installed; pip install 'excise[reference]'" in error


def test_a_release_runs_pinned_actions_with_the_least_rights() -> None:
    import yaml

    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = flow["jobs"]
    assert flow[True] == {"push": {"tags": ["v[0-9]*"]}} and flow["permissions"] == {}  # YAML 1.1 reads `on` as true
    rights = {name: set(job["permissions"].items()) for name, job in jobs.items()}
    assert rights.pop("build") == {("contents", "read")}
    assert rights.pop("attest") == {("id-token", "write"), ("attestations", "write")}
    assert set(map(frozenset, rights.values())) == {frozenset({("id-token", "write")})}
    assert all(jobs[name]["environment"] == "pypi" and jobs[name]["needs"] for name in rights)
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name) for name in used)


@pytest.mark.slow
def test_the_second_is_the_bundled_model_with_its_licences(data_wheel: Path) -> None:
    source = ROOT / "reference" / "src"
    with zipfile.ZipFile(data_wheel) as archive:
        names = archive.namelist()
        tracked = subprocess.run(["git", "ls-files", "."], cwd=source, capture_output=True, text=True).stdout.split()
        assert set(tracked) == {name for name in names if ".dist-info/" not in name}
        assert all(archive.read(name) == (source / name).read_bytes() for name in tracked)
    assert data_wheel.stat().st_size <= DATA_MB * 1e6
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "ATTRIBUTION.md", "bpe_simple_vocab_16e6.LICENSE", "emoji_words.LICENSE"}


@pytest.mark.slow
def test_both_draw_what_the_source_tree_draws(wheel: Path, data_wheel: Path, tmp_path: Path) -> None:
    both = Installed(tmp_path / "both")
    both.install(wheel)
    both.install(data_wheel)
    words = ("generate", "--prompt", "a gun on grass", "--seed", "3", "--steps", "4", "--out")
    done = both.excise(*words, tmp_path / "installed.png")
    assert done.returncode == 0, done.stderr
    source = [sys.executable, "-m", "excise", *words, tmp_path / "source.png"]
    subprocess.run(source, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "installed.png").read_bytes() == (tmp_path / "source.png").read_bytes()


@pytest.mark.slow
def test_the_index_would_take_all_four_files(wheel: Path, data_wheel: Path, dist: Path) -> None:
    pytest.importorskip("twine")
    sdists = [built(ROOT, dist, "sdist"), built(ROOT / "reference", dist, "sdist")]
    command = [sys.executable, "-m", "twine", "check", "--strict", wheel, data_wheel, *sdists]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(sdists[0]) as archive:
        names = archive.getnames()
    assert sdists[0].stat().st_size <= 5e6 and sdists[1].stat().st_size <= DATA_MB * 1e6
    assert not [name for name in names if name.endswith(WEIGHTS) and "/tests/" not in name]
