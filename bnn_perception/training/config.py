"""The training configuration: one YAML file, checked when it is read, every field with a sensible default.

Nothing but the data is needed: :func:`default_config` is what ``train --data FOLDER`` runs.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from bnn_perception.errors import Error, one_line
from bnn_perception.net.checks import MAX_LABEL
from bnn_perception.net.layers import SHORTCUTS
from bnn_perception.net.model import InputSpec

#: Environment variable that names the folder which relative data paths start from.
DATA_VARIABLE = "BNN_DATA"


class ConfigError(Error, ValueError):
    """A configuration that cannot be used; the message names the file, the field and the remedy."""


@dataclass(frozen=True)
class ThermometerSpec:
    """Thermometer code of the pixels, ``levels`` bits a channel; one level is the paper's input binarization."""

    levels: int = 8


@dataclass(frozen=True)
class ConvSpec:
    """Binary convolution, max pool where ``pool`` is not 0, batch norm, sign."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after convolution and pool."""

        def length(before: int) -> int:
            after = (before + 2 * self.padding - self.kernel) // self.stride + 1
            return after // self.pool if self.pool else after

        return length(height), length(width)


@dataclass(frozen=True)
class InputConvSpec(ConvSpec):
    """The same on 8-bit pixels; must come first."""


@dataclass(frozen=True)
class InputStreamConvSpec(InputConvSpec):
    """Convolution of 8-bit pixels, max pool, batch norm: the first real-valued stream of a residual net."""


#: What a residual convolution may do to its sums before the batch norm.
ACTIVATIONS = ("none", "relu", "prelu")


@dataclass(frozen=True)
class ResidualConvSpec(ConvSpec):
    """RSign, binary convolution, max pool, activation, batch norm, plus the shortcut of the stream.

    RSign, the sign with a learnt threshold a channel, is that of ReActNet (arXiv 2003.03488, section 4.2); the
    real-valued shortcut around every convolution is that of Bi-Real Net (arXiv 1808.00278, section 3.1).

    Attributes:
        shortcut: ``identity``; ``average_pool``, 2x2, where the size halves; or ``none``. More channels than the
            stream has must be a multiple of its channels, which are then repeated.
        activation: ``relu`` as in QuickNet (arXiv 2011.09398), ``prelu`` with a slope a channel, or ``none``.
    """

    shortcut: str = "identity"
    activation: str = "none"


@dataclass(frozen=True)
class DenseSpec:
    """Binary matrix, batch norm, sign."""

    features: int


@dataclass(frozen=True)
class OutputSpec:
    """Binary matrix, batch norm: the logits. Must come last."""


LayerSpec = ThermometerSpec | InputConvSpec | ConvSpec | DenseSpec | OutputSpec
LAYER_KINDS: dict[str, type] = {
    "thermometer": ThermometerSpec,
    "input_conv2d": InputConvSpec,
    "binary_conv2d": ConvSpec,
    "input_stream_conv2d": InputStreamConvSpec,
    "residual_conv2d": ResidualConvSpec,
    "binary_dense": DenseSpec,
    "output_dense": OutputSpec,
}


@dataclass(frozen=True)
class NetworkSpec:
    """A topology and the size of its input."""

    height: int
    width: int
    channels: int
    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        if not self.layers or not isinstance(self.layers[-1], OutputSpec):
            raise ConfigError("network: the last layer must be an output_dense")
        height, width, dense = self.height, self.width, False
        stream: int | None = None  # channels of the real-valued stream, where there is one
        for index, layer in enumerate(self.layers):
            where = f"network[{index}]"
            if isinstance(layer, (InputConvSpec, ThermometerSpec)) != (index == 0):
                raise ConfigError(
                    f"{where}: the first layer, and no other, is an input_conv2d or a thermometer"
                )
            if isinstance(layer, OutputSpec) and index != len(self.layers) - 1:
                raise ConfigError(f"{where}: an output_dense must be the last layer")
            if isinstance(layer, ConvSpec):
                if dense:
                    raise ConfigError(f"{where}: a convolution cannot follow a dense layer")
                before = height, width
                height, width = layer.output_size(height, width)
                if height < 1 or width < 1:
                    raise ConfigError(f"{where}: nothing is left of the {self.height}x{self.width} input")
                if isinstance(layer, ResidualConvSpec):
                    _check_shortcut(where, layer, stream, before, (height, width))
                is_stream = isinstance(layer, (InputStreamConvSpec, ResidualConvSpec))
                stream = layer.channels if is_stream else None
            dense = dense or isinstance(layer, DenseSpec)

    def named_layers(self) -> list[tuple[str, LayerSpec]]:
        """Layers with the names they get in the model folder: conv1, conv2, dense1, output, ..."""
        counts: dict[str, int] = {}
        named = []
        for layer in self.layers:
            if isinstance(layer, (ThermometerSpec, OutputSpec)):
                name = "thermometer" if isinstance(layer, ThermometerSpec) else "output"
            else:
                stem = "conv" if isinstance(layer, ConvSpec) else "dense"
                counts[stem] = counts.get(stem, 0) + 1
                name = f"{stem}{counts[stem]}"
            named.append((name, layer))
        return named


def _check_shortcut(
    where: str,
    layer: ResidualConvSpec,
    stream: int | None,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    if layer.shortcut == "none":
        return
    if stream is None:
        raise ConfigError(
            f"{where}: the layer before it has no stream to add; it must be an input_stream_conv2d or a "
            f"residual_conv2d"
        )
    if layer.channels % stream:
        raise ConfigError(f"{where}: {layer.channels} channels are no multiple of the shortcut's {stream}")
    expected = before if layer.shortcut == "identity" else (before[0] // 2, before[1] // 2)
    if after != expected:
        raise ConfigError(
            f"{where}: its result is {after[0]}x{after[1]}, the shortcut {layer.shortcut} "
            f"{expected[0]}x{expected[1]}"
        )


@dataclass(frozen=True)
class DataSpec:
    """Where images come from.

    Attributes:
        train: a folder with a folder for each class; or such a folder in an uncompressed tar file
            (``photos.tar/train``); or an ``.npz`` with ``x`` (N, H, W, 3) uint8, ``y`` (N,) and optionally ``track``
            (N,): images of one track show the same object and stay on one side of the split.
        also: further such folders or files with images of the same classes. Tracks of one number and class are one,
            wherever they are stated.
        test: likewise, or empty: accuracy is then measured on the validation part and called so.
        validation: part of the training data that is kept for validation.
        labels: names of the classes; empty: folder names, or class_0, ... for an npz.
        ignore: folders that are left out, of ``train`` and of ``test``.
        rendered: how many road signs to render and add to the training data (class ids of GTSRB).
        rendered_share: part of each epoch that they make up.
    """

    train: str = ""
    also: tuple[str, ...] = ()
    test: str = ""
    validation: float = 0.15
    labels: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rendered: int = 0
    rendered_share: float = 0.1


@dataclass(frozen=True)
class AugmentationSpec:
    """Random changes of each training image. 0 switches one off.

    Attributes:
        rotation: degrees, either way.
        scale: smallest and largest.
        shift: part of the side, either way, in x and y.
        perspective: strength of the keystone, part of the size.
        flip: mirror left and right at random; wrong where a class has a side (an arrow, a letter).
        brightness, contrast, gamma: parts of the range or of 1, either way.
        colour: cast, part of each channel, either way.
        blur: largest blend of the image with its 3x3 mean.
        noise: largest standard deviation, part of the range.
    """

    rotation: float = 10.0
    scale: tuple[float, float] = (0.8, 1.15)
    shift: float = 0.1
    perspective: float = 0.08
    flip: bool = False
    brightness: float = 0.06
    contrast: float = 0.3
    gamma: float = 0.3
    colour: float = 0.08
    blur: float = 0.8
    noise: float = 0.02


#: Stages of training, in order; each is a field of the configuration.
STAGES = ("float_twin", "activations", "binary", "head")

#: How a stage may step, and how its learning rate may go after the warm-up.
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "constant")

#: Arithmetic of the training steps.
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class StageSpec:
    """One stage of training.

    Attributes:
        epochs: at most so many; 0 leaves out ``activations`` or ``head``.
        learning_rate: the highest, which a linear warm-up leads to.
        warmup: its length, epochs.
        optimizer: ``adam``, with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); or ``sgd``, with
            Nesterov's momentum of 0.9, which wants a higher learning rate.
        schedule: of the learning rate after the warm-up: ``cosine`` to 0 (arXiv 1608.03983), or ``constant``.
        restart: the epoch after which the cosine begins anew, from the highest rate to 0 at the last epoch (a warm
            restart of the same paper); 0: never.
        weight_decay: of the weights of convolutions and matrices. Leave it 0 where weights are binary: it pulls
            latent weights to 0, where any step may change their sign.
        label_smoothing: part of each label that is spread over all classes.
        distillation: weight of the float twin's answers in the loss; 1 minus it is the labels'. The float twin itself
            has no teacher.
        temperature: of the distillation (Hinton et al., arXiv 1503.02531).
        from_float: start from the weights of the stage before, the float twin's or those of ``activations``, instead
            of random ones; ``head`` always does.
        latent_clipping: keep the latent weights of ``binary`` and ``head`` in [-1, 1] (Courbariaux et al., arXiv
            1602.02830, algorithm 1).
        batch_norm_reestimation: let the validation images choose between the batch norm as training left it and the
            one re-estimated with the final weights
            (:func:`bnn_perception.training.validation.reestimate_batch_norm`).
        patience: stop after so many epochs without a better validation accuracy; 0 goes on to the end. With the cosine
            the last epochs gain most, so it should be a good part of ``epochs``.
    """

    epochs: int
    learning_rate: float
    warmup: float = 1.0
    optimizer: str = "adam"
    schedule: str = "cosine"
    restart: int = 0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    from_float: bool = False
    latent_clipping: bool = True
    batch_norm_reestimation: bool = True
    patience: int = 0


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on, besides the data itself and the version of the libraries.

    Attributes:
        float_twin: the net with real weights and ReLU: the teacher of the other stages.
        activations: the net with binary activations and real weights, between the two others, as the first of the two
            steps of Martinez et al. (arXiv 2003.11535); no epochs: left out.
        binary: the net that is exported, unless there is a head stage.
        head: the same net once more, its convolutions frozen, trained from the first matrix on
            (:mod:`bnn_perception.training.head`); no epochs: left out.
        batch: images a step, of all processes together.
        sampling: a class of n images is drawn in proportion to ``n ** sampling``; 1 leaves the data as it is, 0
            balances all classes.
        epoch_images: an epoch has at least so many real images; fewer are repeated, each time augmented anew.
        threads: of the CPU; 0 takes one for each core.
        precision: of the training steps: ``float32``, ``bfloat16`` (PyTorch's autocast; weights, batch-norm statistics
            and whatever is measured stay float32), or ``auto``: bfloat16 on a GPU that has it, else float32.
    """

    name: str
    network: NetworkSpec
    input: InputSpec
    data: DataSpec
    description: str = ""
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)
    float_twin: StageSpec = field(
        default_factory=lambda: StageSpec(
            epochs=30, learning_rate=2e-3, weight_decay=1e-2, label_smoothing=0.05
        )
    )
    activations: StageSpec = field(
        default_factory=lambda: StageSpec(
            epochs=0, learning_rate=2e-3, warmup=0.5, weight_decay=1e-2, distillation=0.7, from_float=True
        )
    )
    binary: StageSpec = field(
        default_factory=lambda: StageSpec(
            epochs=100, learning_rate=2e-3, warmup=0.5, distillation=0.7, from_float=True
        )
    )
    head: StageSpec = field(
        default_factory=lambda: StageSpec(epochs=0, learning_rate=2e-3, warmup=0.5, distillation=0.7)
    )
    batch: int = 128
    sampling: float = 0.5
    epoch_images: int = 2000
    seed: int = 1
    threads: int = 0
    precision: str = "auto"


#: What ``train`` takes where the configuration names no network: 1.3 M weights, 32x32 pixels.
DEFAULT_NETWORK: list[dict[str, Any]] = [
    {"kind": "input_conv2d", "channels": 64, "pool": 2},
    {"kind": "binary_conv2d", "channels": 128, "pool": 2},
    {"kind": "binary_conv2d", "channels": 256, "pool": 2},
    {"kind": "binary_dense", "features": 512},
    {"kind": "output_dense"},
]


def default_config(name: str, train: str) -> Config:
    """The configuration of ``train --data FOLDER`` without a file: activations become binary first, then weights."""
    stages = {"activations": {"epochs": 20}, "binary": {"epochs": 80}}
    return from_mapping({"name": name, "data": {"train": train}, **stages})


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: naming the file, the field and what is wrong with it.
    """
    content = read_yaml(path)
    content.pop("study", None)  # see bnn_perception.training.study
    try:
        return from_mapping(content, default_name=Path(path).stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: naming the file.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    # Of the file; of PyYAML; or of Python where PyYAML converts a number, a date or a nest of brackets.
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from None
    return _mapping(str(path), content)


class _Loader(yaml.SafeLoader):
    """Refuses a field that stands twice, of which PyYAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f"the field '{key.value}' stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def from_mapping(content: object, default_name: str = "model") -> Config:
    """A configuration from what YAML gave."""
    values = _mapping("the configuration", content)
    _refuse_unknown("", values, Config)
    input_values = {"height": 32, "width": 32, **_mapping("input", values.get("input", {}))}
    _refuse_unknown("input", input_values, InputSpec)
    try:
        input_spec = InputSpec(**input_values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    layers = values.get("network", DEFAULT_NETWORK)
    if not isinstance(layers, list):
        raise ConfigError("network: is not a list of layers")
    network = NetworkSpec(
        *input_spec.shape,
        layers=tuple(_layer(f"network[{index}]", layer) for index, layer in enumerate(layers)),
    )
    defaults = Config(name=default_name, network=network, input=input_spec, data=DataSpec())
    parts: dict[str, Any] = {
        key: _fill(key, getattr(defaults, key), values[key])
        for key in ("data", "augmentation", *STAGES)
        if key in values
    }
    scalars = {key: values[key] for key in values if key not in {*parts, "input", "network"}}
    config = replace(_fill("", defaults, scalars), **parts)
    _check_ranges(config)
    _check_names(config)
    return config


def override(
    config: Config,
    epochs: int | None = None,
    float_epochs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Config:
    """The configuration with what the command line gives (None: nothing) put in its place.

    Args:
        epochs: of the binary stage, and at most so many of ``activations`` and ``head``.
    """
    binary, activations, head = config.binary, config.activations, config.head
    float_twin = config.float_twin
    if epochs is not None:
        binary = replace(binary, epochs=epochs)
        activations = replace(activations, epochs=min(epochs, activations.epochs))
        head = replace(head, epochs=min(epochs, head.epochs))
    result = replace(
        config,
        activations=activations,
        binary=binary,
        head=head,
        float_twin=float_twin if float_epochs is None else replace(float_twin, epochs=float_epochs),
        seed=config.seed if seed is None else seed,
        threads=config.threads if threads is None else threads,
    )
    _check_ranges(result)
    return result


def to_mapping(config: Config) -> dict[str, Any]:
    """The configuration as plain values: what decides whether a run may be resumed, and what records keep."""
    kinds = {spec: kind for kind, spec in LAYER_KINDS.items()}
    return {
        **asdict(config),
        "network": [{"kind": kinds[type(layer)], **asdict(layer)} for layer in config.network.layers],
    }


def resolve_data(path: str, root: str | None = None) -> Path:
    """Where a data path of a configuration lies.

    Args:
        path: as configured; an absolute one stays as it is.
        root: folder that relative paths start from; None takes the environment variable BNN_DATA, then the
            current folder.

    Raises:
        ConfigError: where nothing is there.
    """
    base = root if root is not None else os.environ.get(DATA_VARIABLE, ".")
    resolved = Path(base) / path
    if not any(place.is_file() for place in resolved.parents) and not resolved.exists():
        raise ConfigError(
            f"{resolved}: no such file or folder; say where the data lies with --data or the environment "
            f"variable {DATA_VARIABLE}"
        )
    return resolved


def portable(path: str | os.PathLike[str]) -> Path:
    """A path as another machine would give it: without this one's folders."""
    path = Path(path)
    return Path(path.name) if path.is_absolute() else path


def _check_ranges(config: Config) -> None:
    for where, value, low, high in (
        ("batch", config.batch, 2, 65536),
        ("epoch_images", config.epoch_images, 0, 10**9),
        ("seed", config.seed, 0, 2**31 - 1),
        ("threads", config.threads, 0, 4096),
        ("sampling", config.sampling, 0.0, 1.0),
        ("data.validation", config.data.validation, 0.01, 0.9),
        ("data.rendered", config.data.rendered, 0, 10**6),
        ("data.rendered_share", config.data.rendered_share, 0.0, 0.9),
        *_augmentation_ranges(config.augmentation),
        *(each for stage in STAGES for each in _stage_ranges(stage, getattr(config, stage))),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{where} is {value}; it must be from {low} to {high}")
    if config.augmentation.scale[0] > config.augmentation.scale[1]:
        raise ConfigError(
            f"augmentation.scale is {list(config.augmentation.scale)}; the smallest comes first"
        )
    chosen: list[tuple[str, str, tuple[str, ...]]] = [("precision", config.precision, PRECISIONS)]
    for stage in STAGES:
        spec: StageSpec = getattr(config, stage)
        chosen += [
            (f"{stage}.optimizer", spec.optimizer, OPTIMIZERS),
            (f"{stage}.schedule", spec.schedule, SCHEDULES),
        ]
    for where, choice, choices in chosen:
        if choice not in choices:
            raise ConfigError(f"{where} is '{choice}'; it can be {', '.join(choices)}")


def _augmentation_ranges(spec: AugmentationSpec) -> list[tuple[str, float, float, float]]:
    """What :func:`_check_ranges` checks of the augmentation: field, value, lowest, highest."""
    highest = {
        "rotation": 180.0,
        "shift": 1.0,
        "perspective": 0.4,  # at 0.5 a corner of the picture reaches the horizon
        **dict.fromkeys(("brightness", "contrast", "colour", "blur", "noise"), 1.0),
        "gamma": 5.0,
    }
    ranges = [(f"augmentation.{name}", getattr(spec, name), 0.0, high) for name, high in highest.items()]
    return ranges + [(f"augmentation.scale[{i}]", value, 0.01, 100.0) for i, value in enumerate(spec.scale)]


def _check_names(config: Config) -> None:
    """That the name can be that of a folder, and that the labels can be stored and told apart."""
    if not is_label(config.name) or "/" in config.name or config.name in (".", ".."):
        raise ConfigError(f"name is {config.name!a}; it must be a text that can name a folder")
    for label in config.data.labels:
        if not is_label(label):
            raise ConfigError(
                f"data.labels: {label!a} cannot be a label; it takes 1 to {MAX_LABEL} characters on one line"
            )
        if config.data.labels.count(label) > 1:
            raise ConfigError(f"data.labels: '{label}' stands twice")


def is_label(text: str) -> bool:
    """Whether a label can be stored and shown: not empty, not long, on one line, no byte that is no UTF-8."""
    odd = any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
    return bool(text.strip()) and len(text) <= MAX_LABEL and not odd


def _stage_ranges(stage: str, spec: StageSpec) -> list[tuple[str, float, float, float]]:
    """What :func:`_check_ranges` checks of a stage: field, value, lowest, highest."""
    return [
        (f"{stage}.{name}", value, low, high)
        for name, value, low, high in (
            ("epochs", spec.epochs, 1 if stage in ("float_twin", "binary") else 0, 100000),
            ("learning_rate", spec.learning_rate, 0.0, 100.0),
            ("warmup", spec.warmup, 0.0, 100000.0),
            ("weight_decay", spec.weight_decay, 0.0, 100.0),
            ("label_smoothing", spec.label_smoothing, 0.0, 1.0),
            ("distillation", spec.distillation, 0.0, 1.0),
            ("temperature", spec.temperature, 0.1, 100.0),
            ("patience", spec.patience, 0, 100000),
            ("restart", spec.restart, 0, max(0, spec.epochs - 1)),
        )
    ]


def _layer(where: str, value: object) -> LayerSpec:
    values = _mapping(where, value)
    kind = values.pop("kind", None)
    if kind not in LAYER_KINDS:
        raise ConfigError(f"{where}: kind {kind!r} is not one of {', '.join(LAYER_KINDS)}")
    cls = LAYER_KINDS[kind]
    _refuse_unknown(where, values, cls)
    for key, choices in (("shortcut", SHORTCUTS), ("activation", ACTIVATIONS)):
        if key in values and values[key] not in choices:
            raise ConfigError(f"{where}.{key} is {values[key]!r}; it can be {', '.join(choices)}")
    for key, number in values.items():
        if key in ("shortcut", "activation"):
            continue
        low = 0 if key in ("padding", "pool") else 1
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= 65536:
            raise ConfigError(f"{where}.{key} is {number!r}; it must be a whole number of at least {low}")
    try:
        layer: LayerSpec = cls(**values)
    except TypeError:
        required = ", ".join(f.name for f in fields(cls))
        raise ConfigError(f"{where}: a field of {kind} is missing; it has {required}") from None
    return layer


def _fill(where: str, defaults: Any, value: object) -> Any:
    """``defaults``, a dataclass, with the fields that ``value`` names replaced; types are checked."""
    values = _mapping(where, value)
    _refuse_unknown(where, values, type(defaults))
    for key, given in values.items():
        default = getattr(defaults, key)
        name = f"{where}.{key}" if where else key
        if isinstance(default, tuple):
            if not isinstance(given, list) or (default and len(given) != len(default)):
                raise ConfigError(
                    f"{name} is {given!r}; it must be a list" + (f" of {len(default)}" if default else "")
                )
            kind = type(default[0]) if default else str
            values[key] = tuple(_typed(f"{name}[{i}]", item, kind) for i, item in enumerate(given))
        else:
            values[key] = _typed(name, given, type(default))
    return replace(defaults, **values)


def _typed(name: str, value: object, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and kind is float:  # YAML 1.1 reads 2e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r}; it must be of type {kind.__name__}")
    return value


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where}: is not a mapping of fields")
    return dict(value)


def _refuse_unknown(where: str, values: Mapping[str, Any], cls: type) -> None:
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            prefix = f"{where}: " if where else ""
            raise ConfigError(f"{prefix}unknown field '{key}'; there are {', '.join(sorted(known))}")
