"""How a target's folder is written, verified and described: the part of a target that deploys."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from autocompress.deploy.documents import write_documents
from autocompress.deploy.exported import Export, ExportReport
from autocompress.deploy.verify import OPENER, Opening, Verification, verify_folder
from autocompress.errors import ModelError
from autocompress.evaluation.windows import Windows
from autocompress.methods.target import Target
from autocompress.surgery.loading import LoadedModel, has_own_code, is_exported
from autocompress.surgery.stored_types import dtype_name


class Format(Target):
    """A target that is written, verified and described; registered in ``deploy/targets.py``.

    Attributes:
        opener: module that opens a folder in the runtime and scores it, in a process of its own;
            see ``verify.main``.
    """

    opener: ClassVar[str] = OPENER

    @abstractmethod
    def write_model(self, export: Export, folder: Path) -> ExportReport:
        """Write weights, configuration and tokenizer into an empty folder.

        Raises:
            StorageError: what was written is not what was meant.
        """

    @abstractmethod
    def how_to_load(self, own_code: bool) -> str:
        """Say in the model card how a folder is loaded and used.

        Args:
            own_code: whether the model comes with code of its own, which must be let run.
        """

    @abstractmethod
    def call_to_load(self, folder: Path, own_code: bool) -> str:
        """The call that loads a folder; see ``how_to_load``."""

    def write(self, export: Export, folder: Path) -> ExportReport:
        """Write a plan of a dense model into an empty folder, such as ``whole_folder`` gives.

        The folder holds the model, the recipe, the measurements and a model card.

        Raises:
            ModelError: the model is a compressed one already.
            RecipeError: the plan names a layer that the model lacks.
            MethodError: the plan holds what the target does not open.
            StorageError: what was written is not what was meant.
        """
        loaded = export.loaded
        if is_exported(loaded.model):
            raise ModelError(
                f"{loaded.source} is compressed already", wanted="the dense model it was made from"
            )
        inventory = export.workbench.inventory
        self.check(export.plan, inventory.layers)
        report = self.write_model(export, folder)
        write_documents(export, inventory, folder, self.how_to_load(has_own_code(loaded)))
        return report

    def verify(
        self,
        report: ExportReport,
        loaded: LoadedModel,
        windows: Windows,
        figure: float,
        shown: Path | None = None,
    ) -> Verification:
        """Open a written folder in a fresh process and compare it with what was measured.

        Args:
            report: of the folder.
            loaded: the dense model, on whose device and in whose type the folder is scored.
            windows: what to score.
            figure: what the compressed model scored on them before it was written.
            shown: what to call the folder, if it is not at its place yet.

        Raises:
            StorageError: it does not load, or is not the model it should be.
        """
        return verify_folder(
            report.folder,
            windows,
            figure=figure,
            weight_bytes=report.weight_bytes,
            opening=Opening(
                str(loaded.model.device), dtype_name(loaded.model.dtype), loaded.trust_remote_code
            ),
            shown=shown,
            opener=self.opener,
        )
