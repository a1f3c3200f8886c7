"""TrainingConfig: everything that decides a training run, read from one TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geo_mvmf.errors import UsageError
from geo_mvmf.inputs import mistaken
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.idle_options import check_given
from geo_mvmf.model.option_combinations import check_combinations
from geo_mvmf.model.option_values import STAGES, check_values
from geo_mvmf.model.partition_options import PartitionOptions

__all__ = ["STAGES", "TrainingConfig", "config_from_dict", "read_config"]

_MOST_BYTES = 1 << 20  # of a TOML file: a longer one is something else, and enough of it to say what
_PATHS = ("table", "root", "out", "init_bundle", "validation_table", "polygons", "cache_dir", "partition_file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides a training run. One that begins refuses options that do nothing (`idle_options`).

    Parameters
    ----------
    stage : {"backbone", "head", "finetune"}
        Country classification; the output layer on cached features; everything under the true loss.
    table : str
        Image table or folder of images with true locations (`read_image_table`).
    out : str
        Run folder: config.json, log.jsonl, checkpoints, and at the end bundle.safetensors (backbone.safetensors
        after stage backbone).
    root, layer, crs, exif
        Given to `read_image_table`.
    backbone, backbone_width, stem_stride, pool, embedding, normalisation, weights
        Given to `build_backbone`. Not together with `init_bundle`.
    init_bundle : str, optional
        Bundle to start from: its backbone (stage head), or backbone and head (stage finetune).
    resize, crop, channels, bands, stretch, ground_km
        How images are prepared (`ImageSpec`); by default the backbone's own size.
    head : {"mvmf", "cross_entropy"}
    partition : {"s2", "planet", "kmeans", "file"}
        Classes of the training places, which the components begin as: `partition_sphere` (the paper's),
        `partition_by_thresholds`, `partition_by_kmeans` or `partition_by_file`; a cross-entropy head needs S2 cells.
    num_components : int, optional
        Of s2 at least so many, 6 + 3 j come out (paper, section 3.2); of kmeans so many. 1024 by default.
    split_above, drop_below : int, optional
        Of planet; 10000 and 50 by default.
    partition_file, partition_column : str, optional
        Of file: a layer of polygons or a table of cells or centres, and the column that names its classes.
    max_level : int
        Deepest S2 level of the partition.
    mean_direction : {"centre", "photos"}
        Initial mean direction: centre of the S2 cell or polygon, or mean of its photos; k-means has the latter.
    initial_log_concentration : "auto" or float
        Per component from its cell's size or its distance to others, or one value (the paper's is 16).
    train_mean_directions, train_log_concentrations : bool
    bias : {"counts", "zeros", "none"}
        Of the output layer. It begins at the log of each component's share of the training images, so that an untrained
        model predicts where these are; or at 0, as the authors' code does (theirs is 0.1 for all, which softmax takes
        for 0); or there is none, as in the paper's eq. 3. Stage finetune goes on with that of `init_bundle`.
    floor : float, optional
        Density per steradian below which the likelihood is cut; None is exact.
    label_smoothing_km : float, optional
        Of a cross-entropy head: the labels of cells fall by a factor of e on so many kilometres beyond the nearest
        centre (PIGEON's is 75). None: the cell that holds the place alone (PlaNet). The validation NLL is that of the
        predicted density in both.
    optimiser : {"adam", "adamw"}
        `weight_decay` is the L2 gradient with adam (the authors' 1e-5), decoupled decay with adamw.
    fused_optimiser : {"none", "float32", "bfloat16"}
        Update the output layer's weight chunk by chunk within the backward pass, by the same formula to the last bit,
        with moments of this type: 12 or 8 bytes for each of its parameters instead of 16. For huge numbers of
        components; not with `gradient_clip`, which needs all gradients at once, nor with `accumulate`.
    learning_rate, backbone_learning_rate, mean_direction_learning_rate, concentration_learning_rate : float
        The second defaults to the first, the fourth too. The third is in radians per step.
    schedule : {"drops", "cosine", "constant"}
        Times `drop_factor` at every step of `drop_steps` (authors: 0.1 at 1e5 and 5e5), or down to zero along a
        cosine; after `warmup_steps` of linear growth.
    gradient_clip : float, optional
        Largest norm of the gradient of all weights together.
    ema_decay : float
        Decay of the running mean of the weights that is validated and released; 0 switches it off.
    batch_size, steps, epochs, seed
        Steps or epochs, not both; 20 epochs by default (the paper's).
    accumulate : int
        Parts that each batch is worked through in, one after another, before the one update of its step: images of
        which `batch_size` do not fit into memory. The result is that of the whole batch, to rounding, unless the
        backbone has batch normalisation, which sees a part at a time, or draws at random.
    balance : {"none", "cell", "area"}
        Images drawn as they are; every populated S2 cell of the partition equally often; proportionally to
        the cell's area. Times the table's `weight` in any case.
    validation : {"random", "blocks", "column", "table", "none"}
        A random `validation_fraction` of the rows; of whole S2 cells of level `block_level`; the rows where
        `validation_column` is true; the rows of `validation_table`.
    validate_steps : int, optional
        Once per epoch by default. The state with the lowest validation NLL is released.
    patience : int, optional
        End the run after so many validations in a row without a new lowest NLL; by default it goes on to its end.
    checkpoint_steps, checkpoint_seconds, log_steps
        A checkpoint is written when either has passed; 0 seconds writes one at every step.
    tensorboard : bool
        Whether the numbers of the log go to TensorBoard, too: event files in the folder tensorboard of the run.
    device, precision, threads, workers
        Precision auto: bfloat16 for the backbone on CUDA where the device has it, float32 elsewhere; bfloat16 also on
        CPUs, twice as fast or more on those that have instructions for it, slower on others.
    cache_images_gigabytes : float
        Decoded images are kept in memory when they fit into this.
    features_dtype, cache_dir
        Of the feature cache (stage head); by default inside the run folder.
    augment : Augmentation
        Table ``[augment]`` of the TOML file; of stages backbone and finetune.
    polygons, label_column
        Stage backbone: the country layer, and the column that names a country (default: every row is one).
    half : bool
        Store the bundle's weights as float16.
    description, licence : str
        Go into the bundle.

    Raises
    ------
    UsageError
        Naming the option, its value and what is allowed.

    Examples
    --------
    >>> TrainingConfig(stage="head", table="photos.csv", out="run").num_epochs
    20.0
    >>> TrainingConfig(stage="head", table="photos.csv", out="run", batch_size=0)
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: batch_size is 0; 1..1048576 is allowed
    """

    stage: str
    table: str
    out: str
    root: str | None = None
    layer: str | None = None
    crs: str | None = None
    exif: bool = False
    backbone: str = "wide_resnet50_2"
    backbone_width: int = 64
    stem_stride: int = 1
    pool: int = 1
    embedding: int = 0
    normalisation: str = "fixed"
    weights: str | None = None
    init_bundle: str | None = None
    resize: int | None = None
    crop: int | None = None
    channels: int = 3
    bands: list[int] | None = None
    stretch: list[list[float]] | None = None
    ground_km: float | None = None
    head: str = "mvmf"
    partition: str = "s2"
    num_components: int | None = None
    split_above: int | None = None
    drop_below: int | None = None
    partition_file: str | None = None
    partition_column: str | None = None
    max_level: int = 22
    mean_direction: str = "centre"
    bias: str = "counts"
    initial_log_concentration: str | float = "auto"
    train_mean_directions: bool = False
    train_log_concentrations: bool = False
    floor: float | None = None
    label_smoothing_km: float | None = None
    optimiser: str = "adam"
    fused_optimiser: str = "none"
    learning_rate: float = 1e-4
    backbone_learning_rate: float | None = None
    mean_direction_learning_rate: float = 1e-5
    concentration_learning_rate: float | None = None
    schedule: str = "drops"
    drop_steps: list[int] = dataclasses.field(default_factory=lambda: [100_000, 500_000])
    drop_factor: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 1e-5
    gradient_clip: float | None = None
    ema_decay: float = 0.0
    batch_size: int = 64
    accumulate: int = 1
    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    balance: str = "none"
    validation: str = "random"
    validation_fraction: float = 0.05
    validation_column: str | None = None
    validation_table: str | None = None
    block_level: int = 4
    validate_steps: int | None = None
    patience: int | None = None
    checkpoint_steps: int = 1000
    checkpoint_seconds: float = 600.0
    log_steps: int = 50
    tensorboard: bool = False
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    workers: int = 4
    cache_images_gigabytes: float = 2.0
    features_dtype: str = "float16"
    cache_dir: str | None = None
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    polygons: str | None = None
    label_column: str | None = None
    half: bool = False
    description: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        check_values(self)
        check_combinations(self)

    @property
    def num_epochs(self) -> float:
        """Epochs, where no number of steps is given."""
        return 20.0 if self.epochs is None else float(self.epochs)

    @property
    def partition_options(self) -> PartitionOptions:
        """Which partition is wanted."""
        names = (field.name for field in dataclasses.fields(PartitionOptions) if field.name != "method")
        return PartitionOptions(method=self.partition, **{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values, as config.json holds them."""
        return dataclasses.asdict(self)


def read_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read a training configuration.

    Parameters
    ----------
    path : path
        TOML file. Relative paths in it are relative to its folder.

    Returns
    -------
    TrainingConfig

    Raises
    ------
    UsageError
        If it is no TOML, an option is unknown (the nearest known one is named), or a value is not allowed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.toml"
    >>> _ = path.write_text("batchsize = 3")
    >>> try:
    ...     read_config(path)
    ... except UsageError as error:
    ...     print(str(error).split(": ")[1])
    unknown option 'batchsize'; did you mean batch_size?
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        values = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        kind = mistaken.words_of(content)
        what = "it is no text in UTF-8" if kind in ("", "text") else f"it is {kind}"
        raise UsageError(
            f"{path}: cannot be read as TOML: {what}; give a text file with stage, table, out and what else is wanted"
        ) from error
    except tomllib.TOMLDecodeError as error:
        hint = ""
        if str(error).startswith("Invalid value"):
            hint = "; numbers, true and false stand as they are, and all other values in quotes"
        raise UsageError(f"{path}: cannot be read as TOML: {error}{hint}") from error
    except OSError as error:
        raise UsageError(_not_read(path, error)) from error
    check_given(values, where=str(path))
    return config_from_dict(values, where=str(path), base=path.parent)


def config_from_dict(
    values: Mapping[str, Any], *, where: str = "configuration", base: str | os.PathLike[str] = "."
) -> TrainingConfig:
    """Make a training configuration from plain values.

    Parameters
    ----------
    values : mapping
        As a TOML file holds them.
    where : str
        What messages begin with.
    base : path
        Folder that relative paths are relative to.

    Raises
    ------
    UsageError
        As `read_config`.

    Examples
    --------
    >>> config_from_dict({"stage": "head", "table": "/a.csv", "out": "/run"}).stage
    'head'
    """
    options = dict(values)
    _check_names(options, TrainingConfig, where)
    for name in ("stage", "table", "out"):
        if name not in options:
            raise UsageError(f"{where}: option {name} is missing; stage, table and out are always needed")
    augment = options.pop("augment", {})
    if not isinstance(augment, dict):
        raise UsageError(f"{where}: augment is {augment!r}; a TOML table [augment] is needed")
    _check_names(augment, Augmentation, f"{where}: [augment]")
    for name in _PATHS:
        if isinstance(options.get(name), str):
            options[name] = os.path.normpath(Path(base).absolute() / options[name])
    if str(options.get("weights", "")).endswith((".safetensors", ".pth", ".pt")):
        options["weights"] = os.path.normpath(Path(base).absolute() / options["weights"])
    try:
        return TrainingConfig(**options, augment=Augmentation(**augment))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _not_read(path: Path, error: OSError) -> str:
    wanted = "give the TOML file of a training"
    if path.is_dir():
        return mistaken.folder_with(path, "train.toml") or f"{path} is a folder; {wanted}"
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return f"{path}: {'there is no such file' if missing else (error.strerror or str(error)).lower()}; {wanted}"


def _check_names(values: Mapping[str, Any], kind: type, where: str) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UsageError(f"{where}: unknown option {name!r}; did you mean {near[0]}?")
