"""Adam with steps in proportion to what is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autocompress.healing.student import Student
from autocompress.layers.latent import Latent
from autocompress.requests.healing import Trained

BETAS = (0.9, 0.95)  # a few hundred steps are too few for the usual 0.999
EPSILON = 1e-12  # gradients of single codes are small
CLIP = 3.0  # times the usual norm of the gradient
NORM_SMOOTHING = 0.9
# Of a tensor of zeros, such as biases that were never trained: a share of nothing would keep it
# there. It is the deviation that most models' weights are drawn with before training
# (``initializer_range``), and small beside hidden states.
SIZE_OF_ZEROS = 0.02
# Share of the rate for scales, norms and biases: there are few of each, all tokens agree on what
# they should be, and at the full rate the divergence on held-out text rises.
FEW_SHARE = 0.3
CODE_STEPS = 4.0


class Optimiser:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) on a student's stored weights.

    One rate serves norms, factors and codes: it is a share of the root mean square that each tensor
    had at the start, as the relative steps of Adafactor (Shazeer and Stern 2018, arXiv 1804.04235,
    section 8; there of the current one); the logarithm of a scale moves by the rate itself. Scales
    and vectors move by ``FEW_SHARE`` of that, and the weights behind codes by ``CODE_STEPS`` times
    their rounding error: a share of the weights themselves would never change a code of 2 bits, or
    all codes of 4.

    Args:
        student: whose weights are trained.
        trained: all of them, or all but codes.
    """

    def __init__(self, student: Student, trained: Trained = "all") -> None:
        self.student = student
        self._parameters: dict[str, torch.nn.Parameter] = {}
        for name, parameter in student.trained():
            if trained == "factors" and name.endswith(".latent.units"):
                parameter.requires_grad_(False)
            else:
                self._parameters[name] = parameter
        groups = [
            {"params": [parameter], "size": _size(student, name, parameter)}
            for name, parameter in self._parameters.items()
        ]
        self._adam = torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPSILON)
        self._usual_norm = 0.0

    @property
    def memory_bytes(self) -> int:
        """Of what is trained, its gradients and its two moments."""
        return 4 * sum(4 * parameter.numel() for parameter in self._parameters.values())

    def step(self, rate: float) -> None:
        """Change the weights by their gradients, which are forgotten then."""
        self._clip()
        for group in self._adam.param_groups:
            group["lr"] = rate * group["size"]
        self._adam.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad()

    def _clip(self) -> None:
        usual = self._usual_norm
        most = CLIP * usual if usual else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), most))
        norm = min(norm, most)
        self._usual_norm = NORM_SMOOTHING * usual + (1 - NORM_SMOOTHING) * norm if usual else norm

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on: the student's weights in training and Adam's moments.

        They are the tensors themselves, on their devices, which the next step changes.
        """
        tensors = {f"student.{name}": each for name, each in self.student.state().items()}
        for name, parameter in self._parameters.items():
            for key, value in self._adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["usual_norm"] = torch.tensor(self._usual_norm, dtype=torch.float64)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""
        own = {
            name.removeprefix("student."): tensor
            for name, tensor in tensors.items()
            if name.startswith("student.")
        }
        self.student.load_state_(own)
        self._adam.state.clear()
        for name, parameter in self._parameters.items():
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"adam.{key}.{name}")
                if value is not None:
                    device = value.device if key == "step" else parameter.device
                    state[key] = value.to(device, copy=True)
            if state:
                self._adam.state[parameter] = state
        self._usual_norm = float(tensors["usual_norm"])


def _size(student: Student, name: str, parameter: Tensor) -> float:
    owner = student.model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, Latent):
        return FEW_SHARE if parameter is owner.growth else CODE_STEPS * owner.error
    size = float(parameter.detach().float().square().mean().sqrt()) or SIZE_OF_ZEROS
    return FEW_SHARE * size if parameter.ndim == 1 else size
