"""A compressed model whose stored weights can be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from autocompress.layers.base import CompressedMatrix
from autocompress.layers.dense import DenseMatrix
from autocompress.layers.latent import Latent
from autocompress.layers.packed import PackedCodes
from autocompress.methods.plan import Plan
from autocompress.surgery.compressed import Compressed
from autocompress.surgery.permanent import compressed_copy
from autocompress.surgery.workbench import Build, Workbench


class Student:
    """A copy of a model with a plan applied, whose stored weights can be trained.

    Those are factors, cores, kept elements, codes and their scales, and vectors: norms and biases.
    Zero points and the places of kept elements stay, and so do matrices that the plan keeps, and
    vectors that several modules share, which are stored once. What is used in a forward pass is
    always what would be stored, to the bit.

    Args:
        workbench: holds the dense model, which stays as it is.
        plan: how its matrices are stored, and the weights to start from where there are any, as
            ``weights()`` gives them.
        build: makes the compressed matrix of a layer by a method; it is not changed.

    Attributes:
        model: the compressed model.
    """

    model: PreTrainedModel

    def __init__(
        self,
        workbench: Workbench,
        plan: Plan | Compressed,
        build: Build,
    ) -> None:
        self.plan, self._types = Compressed.of(plan).plan, workbench.inventory.stored_types
        self.model = compressed_copy(workbench, plan, build)
        self.model.requires_grad_(False)
        self._shared = _shared_by_modules(self.model)
        self._tables: dict[str, PackedCodes] = {}
        self._floats: dict[str, tuple[nn.Module, str]] = {}
        matrices = [
            (path, module)
            for path, module in self.model.named_modules()
            if isinstance(module, CompressedMatrix) and not isinstance(module, DenseMatrix)
        ]
        self._stored = {
            f"{path}.{name}": tensor.detach()
            for path, matrix in matrices
            for name, tensor in matrix.state_dict().items()
        }
        for path, matrix in matrices:
            self._take_matrix(path, matrix)
        inside = tuple(f"{path}." for path, _ in matrices)
        for path, module in list(self.model.named_modules()):
            if f"{path}.".startswith(inside):
                continue
            self._take_floats(path, module, vectors_only=True)

    def _take_matrix(self, path: str, matrix: CompressedMatrix) -> None:
        """Give one matrix tensors of its own, in place of those that it shares with others."""
        for name, module in list(matrix.named_modules(prefix=path)):
            if isinstance(module, PackedCodes):
                module.latent = module.new_latent()
                self._tables[name] = module
        for name, module in list(matrix.named_modules(prefix=path)):
            if not isinstance(module, (PackedCodes, Latent)):
                self._take_floats(name, module)

    def _take_floats(self, path: str, module: nn.Module, *, vectors_only: bool = False) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_floating_point() or parameter in self._shared:
                continue
            if vectors_only and parameter.ndim != 1:
                continue
            own = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            module.register_parameter(name, own)
            stored = parameter.dtype
            if vectors_only:  # beside the matrices, where the model computes in its own type
                stored = self._types.get(f"{path}.{name}", stored)
            if {stored, parameter.dtype} != {torch.float32}:
                reads = _StoredType(stored, parameter.dtype)
                parametrize.register_parametrization(module, name, reads, unsafe=True)
            self._floats[f"{path}.{name}"] = module, name

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What an optimiser is to change, by name."""
        return (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        )

    def after_step_(self, step: int) -> None:
        """Keep latent weights in range and renew codes that are chosen jointly."""
        for _, latent in self._latents():
            latent.after_step_(step)

    def settle_(self) -> None:
        """Renew all codes that are chosen jointly, so that they fit the latent weights of now."""
        self.after_step_(0)

    def state(self) -> dict[str, Tensor]:
        """What training changes, as it is in training."""
        tensors = {name: parameter.detach() for name, parameter in self._masters()}
        for path, latent in self._latents():
            tensors |= {f"{path}.{name}": tensor for name, tensor in latent.state_dict().items()}
        return tensors

    @torch.no_grad()
    def load_state_(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        for name, parameter in self._masters():
            parameter.copy_(tensors[name])
        for path, latent in self._latents():
            latent.load_state_dict(
                {name: tensors[f"{path}.{name}"] for name in latent.state_dict()}
            )

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the compressed matrices, and the vectors, as stored in a checkpoint."""
        found = dict(self._stored)
        for path, latent in self._latents():
            found |= {f"{path}.codes": latent.codes(), f"{path}.scales": latent.scales()}
        for name, (module, attribute) in self._floats.items():
            found[name] = getattr(module, attribute).detach().clone()
        return found

    def _latents(self) -> Iterator[tuple[str, Latent]]:
        for path, table in self._tables.items():
            assert table.latent is not None
            yield path, table.latent

    def _masters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained beside codes and scales, in fp32."""
        for name, (module, attribute) in self._floats.items():
            stored = parametrize.is_parametrized(module, attribute)
            master = (
                module.parametrizations[attribute].original  # type: ignore[index,union-attr]
                if stored
                else getattr(module, attribute)
            )
            assert isinstance(master, nn.Parameter)
            yield name, master


def _shared_by_modules(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that more than one module holds."""
    holders = Counter(
        parameter for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    return {parameter for parameter, count in holders.items() if count > 1}


class _StoredType(nn.Module):
    """Reads fp32 numbers in the type they are stored in; gradients go to the fp32 ones.

    Args:
        stored: that type.
        computed: the type that they are then computed in.
    """

    def __init__(self, stored: torch.dtype, computed: torch.dtype) -> None:
        super().__init__()
        self.stored, self.computed = stored, computed

    def forward(self, master: Tensor) -> Tensor:
        """Round to the stored type."""
        return master.to(self.stored).to(self.computed)
