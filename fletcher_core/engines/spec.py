"""What it takes to load an engine, as a value that can be sent to another process and taken up there again."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fletcher_core.engines.choose import has_gpu
from fletcher_core.engines.engine import Engine
from fletcher_core.errors import ConfigError, EngineError
from fletcher_core.models import ModelPackage, load_weights
from fletcher_core.setting_values import EngineChoice, Precision

_LOADER = "fletcher_core.engines.choose:load_engine"


@dataclass(frozen=True)
class EngineSpec:
    """One model on one kind of engine.

    Args:
        folder: the model's, as `ModelPackage.read` takes it.
        name: of the model, for messages.
        choice: which engine; see `load_engine`.
        precision, normalize, dimension, threads, batch_invariant, layer_sample, niceness: as `Embedder.load` takes
            them.
        device: the GPU that the engine's process is to see, as `CUDA_VISIBLE_DEVICES` names it; "" all that there are.
        loader: `module:function` that makes the engine, called as `load_engine` is.
    """

    folder: str
    name: str
    choice: EngineChoice
    precision: Precision
    normalize: bool
    dimension: int
    threads: int | None = None
    batch_invariant: bool = False
    layer_sample: int = 0
    niceness: int = 0
    device: str = ""
    loader: str = _LOADER

    def load(self) -> Engine:
        """The engine, in this process.

        Raises:
            ModelError, ConfigError, EngineError: as `load_engine`.
        """
        try:
            return self._load()
        except ConfigError as error:
            if self.choice == "mlx" and self.device and not has_gpu():  # it was counted: the setting is right
                raise EngineError(
                    f"MLX finds no GPU where CUDA_VISIBLE_DEVICES is {self.device!r}: see whether nvidia-smi shows it, "
                    "and whether Fletcher's extra `cuda` is installed"
                ) from error
            raise

    def _load(self) -> Engine:
        package = ModelPackage.read(Path(self.folder), self.name)
        module, _, function = self.loader.partition(":")
        engine: Engine = getattr(import_module(module), function)(
            self.choice,
            package,
            load_weights(package.folder, package.architecture),
            threads=self.threads,
            batch_invariant=self.batch_invariant,
            normalize=self.normalize,
            dimension=self.dimension,
            precision=self.precision,
            layer_sample=self.layer_sample,
            niceness=self.niceness,
        )
        return engine
