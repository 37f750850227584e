# SPDX-License-Identifier: Apache-2.0
"""EL2N and GraNd, measured by models of a few early epochs; and scores at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim import Optimizer

from dynprune_cuda import functional
from dynprune_cuda._checks.arguments import as_choice, as_int
from dynprune_cuda._schedule.seeds import derive_seed
from dynprune_cuda.static_scores.early import EarlyModels, Loader, Measure, Train, plain_loss
from dynprune_cuda.static_scores.result import StaticScores

# Elements of the per-sample gradients that are held at a time: 1 GiB of float32.
_CHUNK_ELEMENTS = 1 << 28


def el2n_scores(
    make_model: Callable[[], nn.Module],
    loader: Loader,
    *,
    epochs: int = 10,
    seeds: Iterable[int] = range(3),
    train: Train | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    about: str = "",
    progress: bool = False,
) -> StaticScores:
    """EL2N: the Euclidean norm of softmax(logits) - onehot(label), after a few epochs.

    Paul, Ganguli & Dziugaite 2021 (arXiv:2107.07075), section 3. The model is in evaluation mode
    when it measures. Torch's random generators are left as they were.

    Args:
        make_model: Returns a new untrained classifier, on the device that it is to work on.
        loader: Yields (inputs, labels, ids): a `DataLoader` of an `IndexedDataset`, or a
            `DeviceLoader` of full data. A pass must give every sample once. It serves the training
            (let it shuffle) and the measuring (its random augmentation counts in both).
        epochs: Epochs of training; 0 measures at initialisation.
        seeds: One model each; the scores are their mean.
        train: A training of your own: `train(model, epochs=..., seed=..., loss=...)` trains the
            model in place, and computes every loss by `loss(logits, labels, ids)`. None: SGD with
            learning rate 0.1, Nesterov momentum 0.9 and weight decay 5e-4, as in the source.
        optimizer: For the training that is built in: a function from the parameters to an
            optimiser.
        about: A note on data and model, kept with the scores and checked by `StaticScores.load`.
        progress: Shows a bar (needs tqdm).

    Returns:
        The scores.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or the loader does not yield what it should.
    """
    models = EarlyModels(
        make_model,
        loader,
        epochs=epochs,
        seeds=seeds,
        train=train,
        optimizer=optimizer,
        progress=progress,
    )
    return _measure(models, "el2n", _el2n, about)


def grand_scores(
    make_model: Callable[[], nn.Module],
    loader: Loader,
    *,
    layers: str = "all",
    epochs: int = 10,
    seeds: Iterable[int] = range(3),
    train: Train | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    chunk_size: int | None = None,
    about: str = "",
    progress: bool = False,
) -> StaticScores:
    """GraNd: the norm of each sample's own gradient of the cross-entropy, after a few epochs.

    Paul, Ganguli & Dziugaite 2021 (arXiv:2107.07075), section 2. A gradient of one sample exists
    only where samples do not mix. So the model is in evaluation mode, in which batch normalisation
    uses its running averages. (In training mode it would mix the batch.) Untrained running averages
    are 0 and 1, so that scores at initialisation are those of a network without normalisation.

    Args:
        make_model: As in `el2n_scores`, as for the other arguments that are not here.
        loader: See `el2n_scores`.
        layers: "all": over all parameters that require a gradient, exactly, by torch.func; costs
            several times a training pass. "last": over weight and bias of the last layer only, an
            `nn.Linear` whose output must be the model's, in closed form; costs a forward pass.
        epochs: See `el2n_scores`.
        seeds: See `el2n_scores`.
        train: See `el2n_scores`.
        optimizer: See `el2n_scores`.
        chunk_size: Samples whose gradients are held at a time, for "all". None: as many as fit
            into 1 GiB.
        about: See `el2n_scores`.
        progress: See `el2n_scores`.

    Returns:
        The scores, with the method "grand" or "grand_last".

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, the loader does not yield what it should, or the
            model does not end in a linear layer.
    """
    as_choice("layers", layers, ("all", "last"))
    if chunk_size is not None:
        as_int("chunk_size", chunk_size, minimum=1)
    models = EarlyModels(
        make_model,
        loader,
        epochs=epochs,
        seeds=seeds,
        train=train,
        optimizer=optimizer,
        progress=progress,
    )
    if layers == "last":
        return _measure(models, "grand_last", _last_layer_norms, about)

    def norms(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return gradient_norms(model, inputs, labels, chunk_size)

    return _measure(models, "grand", norms, about)


def random_scores(num_samples: int, *, seed: int = 0) -> StaticScores:
    """Scores at random: `top` gives a uniformly random subset, the smaller inside the larger.

    Args:
        num_samples: Size of the training set, from 1 to 2**24.
        seed: Any int.

    Raises:
        TypeError: An argument is no int.
        ValueError: `num_samples` is out of range.
    """
    num_samples = as_int("num_samples", num_samples, minimum=1, maximum=1 << 24)  # exact in float32
    seed = as_int("seed", seed)
    ranks = functional.permutation(num_samples, seed=derive_seed(seed, "static random"))
    return StaticScores(ranks.float(), "random", (seed,))


def _measure(models: EarlyModels, method: str, measure: Measure, about: str) -> StaticScores:
    """Trains and measures with every seed."""
    models.check_length()

    def of_seed(seed: int, tick: Callable[[], None]) -> Tensor:
        model = models.trained(seed, tick, lambda device: plain_loss, every_sample=True)
        return models.measured(model, measure, tick)

    values = models.mean_over_seeds(of_seed)
    return StaticScores(values, method, models.seeds, models.epochs, about)


@torch.no_grad()
def _el2n(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return functional.scored_cross_entropy(model(inputs), labels).el2n


def gradient_norms(
    model: nn.Module, inputs: Tensor, labels: Tensor, chunk_size: int | None = None
) -> Tensor:
    """The norm of each sample's gradient over all parameters, float32 or wider [batch].

    The model must be in evaluation mode. Only the norms leave a chunk: memory is `chunk_size` times
    the number of parameters.
    """
    parameters: dict[str, Tensor] = {}
    others = dict(model.named_buffers())
    for name, parameter in model.named_parameters():
        # Contiguous: to samples that are taken one by one, channels_last is a slow layout.
        part = parameters if parameter.requires_grad else others
        part[name] = parameter.detach().contiguous()
    if not parameters:
        raise ValueError("make_model must return a model with parameters that require a gradient")
    if chunk_size is None:
        elements = sum(parameter.numel() for parameter in parameters.values())
        chunk_size = max(1, _CHUNK_ELEMENTS // elements)

    def loss(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, others), (x.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0).long(), reduction="sum")

    def norm(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, x, label).values()
        wide = [g.double() if g.dtype == torch.float64 else g.float() for g in gradients]
        norms = torch.stack([torch.linalg.vector_norm(g) for g in wide])
        total: Tensor = torch.linalg.vector_norm(norms)
        return total

    norms: Tensor = vmap(norm, in_dims=(None, 0, 0), chunk_size=chunk_size)(
        parameters, inputs.contiguous(), labels
    )
    return norms


@torch.no_grad()
def _last_layer_norms(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("layers='last' needs a model that ends in nn.Linear, this one has none")
    layer, caught = layers[-1], []
    hook = layer.register_forward_hook(lambda _, args, output: caught.append((args[0], output)))
    try:
        logits = model(inputs)
    finally:
        hook.remove()
    if len(caught) != 1 or caught[0][1].data_ptr() != logits.data_ptr():
        raise ValueError(
            "layers='last' needs a model whose output is that of its last nn.Linear, called once: "
            f"{layer!r} is not it"
        )
    features = caught[0][0]
    el2n = functional.scored_cross_entropy(logits, labels).el2n
    return functional.last_layer_grand(el2n, features, bias=layer.bias is not None)
