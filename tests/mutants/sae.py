"""The SAE: codes, losses, measures, and the supervised terms."""

from __future__ import annotations

from tests.mutants import of

MUTANTS = [
    *of(
        "excise/sae/model.py",
        "tests/sae/test_sae_model.py",
        ("return x - self.b_pre\n", "return x\n"),
        ("return Codes(values.relu().view(shape), indices.view(shape))",
         "return Codes(values.view(shape), indices.view(shape))"),
        ("(summed + self.b_pre).view", "summed.view"),
        ("grad.new_zeros(len(weight)).index_add_(0, indices.flatten(), grad.flatten())", "grad.new_zeros(len(weight))"),
        ("kept = values >= least", "kept = values > least"),
        ("values.flatten().topk(self.config.k * len(x), sorted=False)",
         "values.flatten().topk(self.config.k, sorted=False)"),
        ("candidates.gather(1, places)", "candidates[:, :k]"),
        ("directions = F.normalize(torch.randn(config.m, config.d, generator=generator), dim=1)",
         "directions = torch.randn(config.m, config.d, generator=generator)"),
    ),
    *of(
        "excise/sae/losses.py",
        "tests/sae/test_sae_losses.py",
        ("mse = F.mse_loss(reconstruction, x) / variance", "mse = F.mse_loss(reconstruction, x)"),
        ("return Loss(mse + alpha * aux, mse, aux)", "return Loss(mse + aux, mse, aux)"),
        ("error = (x - reconstruction).detach()", "error = x - reconstruction"),
        ("variance = (error - error.mean(0)).square().mean()", "variance = error.square().mean()"),
        ("F.mse_loss(aux_reconstruction(sae, x, dead), error) / variance",
         "F.mse_loss(aux_reconstruction(sae, x, dead), error)"),
        ("centred = x - sae.b_pre.detach()", "centred = x"),
        ("(d // 2).bit_length() - 1", "d.bit_length() - 1"),
        ("torch.where(peak > threshold, 0, idle + vectors)", "torch.where(peak > threshold, 0, idle + 1)"),
        ("torch.where(peak > threshold, 0, idle + vectors)", "torch.where(peak >= threshold, 0, idle + vectors)"),
        ("gradient.addcmul_(along, sae.W_dec, value=-1)", "gradient.addcmul_(along, sae.W_dec, value=1)"),
        ("    project_gradient(sae)\n    optimiser.step()\n", "    optimiser.step()\n"),
        ("    renormalise(sae)\n    optimiser.zero_grad()", "    optimiser.zero_grad()"),
        ("    renormalise(sae)\n    optimiser.zero_grad()", "    renormalise(sae)"),
    ),
    *of(
        "excise/sae/metrics.py",
        "tests/sae/test_sae_metrics.py",
        ("fvu=self._squared_error / variation", "fvu=self._squared_error / self._squares"),
        ("l0=self._active / self._n", "l0=float(self._active)"),
        ("(self._idle >= self._n)", "(self._idle > 0)"),
        ("(codes.values > 0).sum()", "(codes.values >= 0).sum()"),
        ("x[0].clone(), torch.zeros_like(x[0])", "torch.zeros_like(x[0]), torch.zeros_like(x[0])"),
    ),
    *of(
        "excise/sae/supervised.py",
        "tests/sae/test_supervised.py",
        ("supervision.beta * (association + supervision.eta * apart)",
         "supervision.beta * association + supervision.eta * apart"),
        ("+ supervision.l1 * sparsity", ""),
        ("own.mean(1) if pooling == \"mean\"", "own.sum(1) if pooling == \"mean\""),
        ("there = -(F.logsigmoid(v) * present).sum() / present.sum().clamp(min=1)",
         "there = -(F.logsigmoid(v) * present).mean()"),
        ("(F.logsigmoid(-v) * absent)", "(F.logsigmoid(v) * absent)"),
        ("rho.square()[apart].mean()", "rho[apart].mean()"),
        ("apart = groups[:, None] != groups", "apart = groups[:, None] == groups"),
        ("centred = v - v.mean(0)", "centred = v"),
    ),
]  # fmt: skip
