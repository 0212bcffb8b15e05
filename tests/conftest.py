from collections.abc import Callable

import pytest
import torch

from cf_core.bundle import Bundle
from cf_core.fusion import Generator
from cf_core.melody import MelodyFormat
from cf_core.nets import initialise
from cf_core.vae import MelodyVAE, VAESettings

# Small tensors: more threads would only wait for each other.
torch.set_num_threads(1)

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle() -> MakeBundle:
    """A small bundle with random weights: what it makes is no music, but always the same.

    A conditional one chose λ = 0.1 of 0.001…10.
    """

    def make(
        form: MelodyFormat | None = None,
        style_dim: int = 2,
        *,
        gated: bool = True,
        conditional: bool = False,
    ) -> Bundle:
        form = form or MelodyFormat()
        core = MelodyVAE(form, VAESettings(latent_dim=8, hidden=16, embedding=8, depth=1))
        generator = Generator(8, style_dim, 16, 2, gated=gated, conditional=conditional)
        initialise(core, torch.Generator().manual_seed(1))
        initialise(generator, torch.Generator().manual_seed(2))
        core.sigma_bar.uniform_(generator=torch.Generator().manual_seed(3))
        return Bundle(
            form,
            core,
            generator,
            iterations=3,
            weight=0.1 if conditional else None,
            lambda_range=(1e-3, 10.0) if conditional else None,
            record={"study": "tiny"},
        )

    return make
