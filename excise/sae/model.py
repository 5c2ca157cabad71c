"""The TopK sparse autoencoder (Makhzani & Frey 2013; Gao et al. 2024, arXiv 2406.04093; SNCE eqs. 1-3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.errors import WrongModel
from excise.files import write_folder
from excise.hub import fetch, push
from excise.notebook import line, quoted
from excise.sae import storage
from excise.sae.config import SAEConfig
from excise.sae.parallel import ALONE, Mesh
from excise.sae.sparse import drawn, rough, selected, shortlisted, weighted_rows
from excise.sae.storage import StrPath

DIVIDED = ("W_enc", "W_dec", "b_enc")
"""Parameters with a row for each latent, which ranks divide among themselves; all of them have `b_pre`."""


class Codes(NamedTuple):
    """Sparse codes: the k largest latents of each vector, largest first."""

    values: Tensor
    """[..., k], never negative; zero where fewer than k pre-activations are positive."""
    indices: Tensor
    """[..., k] int64, the latents the values belong to."""


class Output(NamedTuple):
    """Return value of `TopKSAE.forward`."""

    reconstruction: Tensor
    """[..., d]."""
    codes: Codes


class TopKSAE(nn.Module):
    """TopK sparse autoencoder: `decode(encode(x))` approximates x from k of m latents.

    Both matrices are [m, d], a latent a row (the paper writes W_dec as d x m). Rows of `W_dec` are unit vectors.
    """

    shortlist: int = 0
    """Number of spare candidates: the k largest are preselected in bfloat16, then computed in float32; 0: float32 only.
    For training (`TrainConfig.shortlist`); it is not saved."""
    rough: bool = False
    """Whether pre-activations come from a product in bfloat16 (`TrainConfig.precision`); gradients are float32."""

    def __init__(self, config: SAEConfig, *, seed: int = 0, mesh: Mesh = ALONE) -> None:
        """Initialise with random unit directions, the same for encoder and decoder, and zero biases.

        In a mesh this rank has its own rows of the same SAE: `encode` returns its latents' codes, numbered from 0, and
        `decode` the whole reconstruction, for which all ranks call them together.
        """
        super().__init__()
        self.config = config
        self.mesh = mesh
        self.card: dict[str, Any] = {}
        """Metadata, as json: corpus, Site, training, metrics. Empty unless the SAE was loaded or trained."""
        rows = mesh.rows(config.m)
        directions = F.normalize(drawn(config.m, config.d, seed, rows), dim=1)
        self.W_enc = nn.Parameter(directions.clone())
        self.W_dec = nn.Parameter(directions)
        self.b_enc = nn.Parameter(torch.zeros(rows.stop - rows.start))
        self.b_pre = nn.Parameter(torch.zeros(config.d))

    def __repr__(self) -> str:
        site = self.card.get("site")
        where = "/".join(str(site.get(key)) for key in ("component", "path")) if isinstance(site, dict) else ""
        shape = f"d={self.config.d}, m={self.config.m}, k={self.config.k}"
        return line(self, shape, f"site={quoted(where)}" if where else "", f"device={str(self.W_enc.device)!r}")

    @classmethod
    def read(cls, folder: StrPath) -> TopKSAE:
        """Load an SAE from a folder, on the CPU. Raises NotFound and Tampered as `from_pretrained`."""
        config, tensors, card = storage.read(folder)
        storage.check_tensors(folder, tensors, config)
        sae = cls(config)
        sae.load_state_dict(tensors)
        sae.card = card
        return sae

    @classmethod
    def from_pretrained(
        cls,
        source: StrPath,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        cache_dir: StrPath | None = None,
        device: torch.device | str = "cpu",
    ) -> TopKSAE:
        """Load an SAE from a folder, or from a repository on the hub, which is downloaded unless cached.

        Args:
            source: A folder, or `OWNER/NAME` on the hub.
            revision: A branch, a tag, or, preferably, a commit of the repository.
            subfolder: Folder within the folder or repository that holds the SAE, such as `text_encoder_2`.
            token: The hub's access token, by default the one of `hf auth login`.
            local_files_only: Use the cache alone.
            cache_dir: The hub's cache, by default its own.
            device: Device to load it on.

        Returns:
            The SAE; `sae.card` describes what it was trained on.

        Raises:
            NotFound: if there is no such folder, repository, revision or subfolder.
            Tampered: if a file is truncated, changed or of another format.

        Example:
            >>> sae = excise.TopKSAE.from_pretrained("owner/sae", revision="6ba7b81")
        """
        found = fetch(
            source,
            (storage.CONFIG, storage.WEIGHTS),
            "SAE",
            revision=revision,
            subfolder=subfolder,
            token=token,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
        return cls.read(found.folder).to(device)

    def save_pretrained(self, folder: StrPath, *, card: Mapping[str, Any] | None = None) -> None:
        """Save the SAE and its card in a folder, atomically.

        Args:
            folder: A new or empty folder, or that of another SAE, which is replaced.
            card: Description, as json; by default `self.card`.

        Raises:
            ExciseError: if the folder holds other files, the card is not json, or the disk refuses.
        """
        write_folder(Path(folder), storage.pack(self.config, self.state_dict(), self.card if card is None else card))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Mapping[str, Any] | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Push a sparse autoencoder",
    ) -> str:
        """Push the SAE, its card and a README.md to a repository on the hub, in one commit.

        Args:
            repo_id: `OWNER/NAME`, created if it does not exist.
            card: Description, as json; by default `self.card`.
            private: Whether a new repository is private; by default as the account's settings say.
            token: The hub's access token, by default the one of `hf auth login`.
            revision: Branch to push to, created if it does not exist; by default `main`.
            commit_message: First line of the commit's message.

        Returns:
            The commit's URL.

        Raises:
            ExciseError: if the name is invalid, the card is not json, or the hub refuses.
        """
        files = storage.pack(self.config, self.state_dict(), self.card if card is None else card)
        return push(
            repo_id,
            lambda name: {storage.README: storage.readme(name, self.config, files[storage.CONFIG]), **files},
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    def preactivations(self, x: Tensor) -> Tensor:
        """Return (x - b_pre) W_encᵀ + b_enc: [..., d] -> [..., m]. Raises WrongModel if the width differs."""
        return F.linear(self._centred(x), self.W_enc, self.b_enc)

    def encode(self, x: Tensor) -> Codes:
        """Return ReLU of the k largest pre-activations: [..., d] -> Codes of [..., k]. Raises WrongModel too."""
        centred = self._centred(x)
        flat = centred.reshape(-1, self.config.d)
        k = min(self.config.k, len(self.W_enc))
        with torch.no_grad():
            if self.shortlist:
                values, indices = shortlisted(flat, self.W_enc, self.b_enc, k, self.shortlist)
            else:
                values, indices = self._product(flat).topk(k, dim=-1)
                values = values.to(flat)
            kept = self.mesh.kept(values, self.config.k) if self.mesh.latents > 1 else None
        values = selected(flat, self.W_enc, self.b_enc, values, indices)
        shape = (*centred.shape[:-1], k)
        codes = Codes(values.relu().view(shape), indices.view(shape))
        return codes if kept is None else Codes(codes.values * kept.view(shape), codes.indices)

    def encode_batch(self, x: Tensor, vectors: int | None = None) -> Codes:
        """Return BatchTopK's codes: ReLU of the k N largest pre-activations of all N vectors [N, d] together.

        After Bussmann et al. 2024. The result has as many columns as the vector with the most codes needs; values that
        were not kept are zero. N is `vectors` if ranks divide them, who then keep the largest of all. Raises as
        `preactivations`.
        """
        centred = self._centred(x)
        with torch.no_grad():
            preacts = self._product(centred).to(centred)
            m = len(self.W_enc)
            width = min(2 * self.config.k, m)
            while True:
                values, indices = preacts.topk(width, dim=-1)
                least = self.mesh.least(values.flatten(), self.config.k * (len(x) if vectors is None else vectors))
                # A vector whose last candidate is kept may have more to keep.
                if not self.mesh.any(width < m and bool((values[:, -1] >= least).any())):
                    break
                width = min(2 * width, m)
            kept = values >= least
            columns = max(1, int(kept.sum(1).max()))
            values, indices, kept = values[:, :columns], indices[:, :columns].contiguous(), kept[:, :columns]
        values = selected(centred, self.W_enc, self.b_enc, values, indices)
        return Codes(values.relu() * kept, indices)

    def decode(self, codes: Codes) -> Tensor:
        """Return sum_j values_j W_dec[indices_j] + b_pre: Codes of [..., k] -> [..., d]."""
        values, indices = (part.reshape(-1, part.shape[-1]) for part in codes)
        summed = self.mesh.summed(weighted_rows(self.W_dec, values, indices))
        return (summed + self.b_pre).view(*codes.values.shape[:-1], self.config.d)

    def forward(self, x: Tensor) -> Output:
        """Return codes and reconstruction of x [..., d]."""
        codes = self.encode(x)
        return Output(self.decode(codes), codes)

    def _product(self, centred: Tensor) -> Tensor:
        """Return pre-activations in the training precision."""
        return rough(centred, self.W_enc, self.b_enc) if self.rough else F.linear(centred, self.W_enc, self.b_enc)

    def _centred(self, x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != self.config.d:
            raise WrongModel(
                f"this SAE reads vectors of width {self.config.d}, but got a tensor of shape {tuple(x.shape)}; "
                "was it trained for another Site or another model?"
            )
        return x - self.mesh.spread(self.b_pre)
