"""A head that starts as the identity passes centred states on, keeps its shape, and bends only what lies far out."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn

from mose.checkpoint.converted_checkpoint import random_like, retrieval_from_pretrained
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.projection_heads import BIAS_DEVIATIONS, VARIANCE_FLOOR, start_from_states


def made_heads(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(), nn.Linear(16, 16)) for _ in range(count))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_states_pass_through_less_their_mean(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Dimensions of very different size, as in trained models, one of which does not vary in the sample.
    sizes_D = scale * torch.logspace(-2, 1, 16)
    sizes_D[3] = 0.0
    states_RD = (torch.rand(200, 16, generator=generator) - 0.5) * sizes_D + 5 * scale
    heads = made_heads(2)
    start_from_states(heads, [states_RD, 2 * states_RD], whiten=False)
    for head, found_RD in zip(heads, (states_RD, 2 * states_RD), strict=True):
        centred_RD = found_RD - found_RD.mean(dim=0)
        torch.testing.assert_close(head(found_RD), centred_RD, rtol=1e-4, atol=1e-4 * scale)


def test_whitening_is_scikit_learn_s() -> None:
    """scikit-learn's PCA whitens up to a rotation, which leaves cosines as they are; the floor is added to its variances."""
    generator = torch.Generator().manual_seed(0)
    states_RD = torch.rand(4000, 16, generator=generator) @ torch.randn(16, 16, generator=generator) + 3
    heads = made_heads(1)
    start_from_states(heads, [states_RD], whiten=True)
    found_RD = heads[0](states_RD).detach()
    pca = PCA().fit(states_RD.double().numpy())
    floor = VARIANCE_FLOOR * pca.explained_variance_.mean()
    expected_RD = torch.from_numpy(pca.transform(states_RD.double().numpy()) / (pca.explained_variance_ + floor) ** 0.5)
    assert F.cosine_similarity(found_RD.double() @ found_RD.double().T, expected_RD @ expected_RD.T).min() > 0.9999
    # As large as the states were, so that the learning rates that suit the identity suit it, too.
    torch.testing.assert_close(found_RD.var(dim=0).mean(), states_RD.var(dim=0).mean(), rtol=1e-4, atol=0.0)


def test_equal_states_do_not_spoil_the_weights() -> None:
    heads = made_heads(1)
    start_from_states(heads, [torch.zeros(20, 16)], whiten=True)
    assert all(parameter.isfinite().all() for parameter in heads.parameters())


def test_only_states_far_out_are_bent() -> None:
    states_RD = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    heads = made_heads(1)
    start_from_states(heads, [states_RD], whiten=False)
    mean_D, deviation = states_RD.mean(dim=0), states_RD.std(dim=0).max()
    far_D = mean_D - 2 * BIAS_DEVIATIONS * deviation
    torch.testing.assert_close(heads[0](mean_D + 100 * deviation), 100 * deviation * torch.ones(16), rtol=1e-4, atol=1e-4)
    assert (heads[0](far_D) > far_D - mean_D).all()


def test_angles_of_a_model_s_states_survive() -> None:
    config = ModularStarEncoderConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        matryoshka_layers=[1, 2],
        initializer_range=0.1,
    )
    model = retrieval_from_pretrained(random_like(config, 0), 0).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    ids_N, positions_N = torch.arange(50), torch.arange(5).repeat(10)
    bounds = torch.arange(0, 51, 5, dtype=torch.int32)
    with torch.inference_mode():
        states = [state_ND[4::5] for state_ND in model.starEncoder2(ids_N, positions_N, bounds, 5)]
    start_from_states(model.projection_heads, states, whiten=False)
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        for found_BD, state_BD in zip(model.embed(ids_N, positions_N, bounds, 5), states, strict=True):
            torch.testing.assert_close(found_BD, F.normalize(state_BD - state_BD.mean(dim=0), dim=-1), rtol=1e-4, atol=1e-5)
