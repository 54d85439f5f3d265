"""The training configuration: one YAML file, checked when it is read, every field with a sensible default.

A field states its default, and what it can be, in one line: the bounds of a number (of each, where there are several)
or the choices of a text. Nothing but the data is needed: :func:`default_config` is what ``train --data FOLDER`` runs.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from bnn_perception.errors import Error, one_line
from bnn_perception.net.checks import MAX_LABEL
from bnn_perception.net.model import InputSpec
from bnn_perception.training.fields import Bounds, one_of, within
from bnn_perception.training.kinds import LAYER_SPECS, LayerSpec, Signal

#: Environment variable that names the folder which relative data paths start from.
DATA_VARIABLE = "BNN_DATA"


class ConfigError(Error, ValueError):
    """A configuration that cannot be used; the message names the file, the field and the remedy."""


#: The highest number of epochs.
MAX_EPOCHS = 100_000


@dataclass(frozen=True)
class NetworkSpec:
    """A topology and the size of its input."""

    height: int
    width: int
    channels: int
    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        if not self.layers or self.layers[-1].gives != "logits":
            raise ConfigError(f"network: the last layer must be an {_kinds(gives='logits')}")
        before = self.input
        for index, layer in enumerate(self.layers):
            where = f"network[{index}]"
            if (layer.takes == "pixels") != (index == 0):
                raise ConfigError(f"{where}: the first layer, and no other, is an {_kinds(takes='pixels')}")
            if layer.gives == "logits" and index != len(self.layers) - 1:
                raise ConfigError(f"{where}: an {layer.kind} must be the last layer")
            if before.flat and layer.takes != "features":
                raise ConfigError(f"{where}: a convolution cannot follow a dense layer")
            after = layer.output(before)
            if after.height < 1 or after.width < 1:
                raise ConfigError(f"{where}: nothing is left of the {self.height}x{self.width} input")
            problem = layer.problem(before, after)
            if problem:
                raise ConfigError(f"{where}: {problem}")
            before = after

    @property
    def input(self) -> Signal:
        """The signal that the first layer takes."""
        return Signal(self.height, self.width, self.channels)

    def named_layers(self) -> list[tuple[str, LayerSpec]]:
        """Layers with the names they get in the model folder: conv1, conv2, dense1, output, ..."""
        counts: Counter[str] = Counter()
        named = []
        for layer in self.layers:
            counts[layer.stem] += 1
            name = f"{layer.stem}{counts[layer.stem]}" if layer.numbered else layer.stem
            named.append((name, layer))
        return named

    def walk(self) -> Iterator[tuple[str, LayerSpec, Signal]]:
        """Each layer of the binary net, with its name and what it takes."""
        return _walk(self.input, self.named_layers())

    def walk_twin(self) -> Iterator[tuple[str, LayerSpec, Signal]]:
        """Each layer of the float twin, with its name and what it takes."""
        return _walk(self.input, [each for each in self.named_layers() if each[1].in_twin])


def _walk(signal: Signal, layers: Iterable[tuple[str, LayerSpec]]) -> Iterator[tuple[str, LayerSpec, Signal]]:
    for name, layer in layers:
        yield name, layer, signal
        signal = layer.output(signal)


def _kinds(**asked: str) -> str:
    """The kinds whose records have these attributes, joined for a message."""
    found = [k for k, spec in LAYER_SPECS.items() if all(getattr(spec, a) == v for a, v in asked.items())]
    *others, last = sorted(found)
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class DataSpec:
    """Where images come from.

    Attributes:
        train: a folder with a folder for each class; or such a folder in an uncompressed tar file
            (``photos.tar/train``); or an ``.npz`` with ``x`` (N, H, W, 3) uint8, ``y`` (N,) and optionally ``track``
            (N,): images of one track show the same object and stay on one side of the split.
        also: further such folders or files, with images of the same classes. In several ``.npz`` with tracks, one
            number in one class means one object; the images of a folder are not tracked.
        test: likewise, or empty: accuracy is then measured on the validation part and called so.
        validation: part of the training data that is kept for validation.
        labels: names of the classes; empty: folder names, or class_0, ... for an npz.
        ignore: folders that are left out, of the training data and of ``test``.
        rendered: how many road signs to render and add to the training data (class ids of GTSRB).
        rendered_share: part of each epoch that they make up.
    """

    train: str = ""
    also: tuple[str, ...] = ()
    test: str = ""
    validation: float = field(default=0.15, metadata=within(0.01, 0.9))
    labels: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rendered: int = field(default=0, metadata=within(0, 10**6))
    rendered_share: float = field(default=0.1, metadata=within(0.0, 0.9))


@dataclass(frozen=True)
class AugmentationSpec:
    """Random changes of each training image. 0 switches one off.

    Attributes:
        rotation: degrees, either way.
        scale: smallest and largest.
        shift: part of the side, either way, in x and y.
        perspective: strength of the keystone, part of the size; at 0.5 a corner of the picture reaches the horizon.
        flip: mirror left and right at random; wrong where a class has a side (an arrow, a letter).
        brightness, contrast, gamma: parts of the range or of 1, either way.
        colour: cast, part of each channel, either way.
        blur: largest blend of the image with its 3x3 mean.
        noise: largest standard deviation, part of the range.
    """

    rotation: float = field(default=10.0, metadata=within(0.0, 180.0))
    scale: tuple[float, float] = field(default=(0.8, 1.15), metadata=within(0.01, 100.0))
    shift: float = field(default=0.1, metadata=within(0.0, 1.0))
    perspective: float = field(default=0.08, metadata=within(0.0, 0.4))
    flip: bool = False
    brightness: float = field(default=0.06, metadata=within(0.0, 1.0))
    contrast: float = field(default=0.3, metadata=within(0.0, 1.0))
    gamma: float = field(default=0.3, metadata=within(0.0, 5.0))
    colour: float = field(default=0.08, metadata=within(0.0, 1.0))
    blur: float = field(default=0.8, metadata=within(0.0, 1.0))
    noise: float = field(default=0.02, metadata=within(0.0, 1.0))


#: Stages of training, in order; each is a field of the configuration.
STAGES = ("float_twin", "activations", "binary", "head")

#: Those of them that every training has.
REQUIRED_STAGES = ("float_twin", "binary")


@dataclass(frozen=True)
class StageSpec:
    """One stage of training.

    Attributes:
        epochs: at most so many; 0 leaves out ``activations`` or ``head``.
        learning_rate: the highest, which a linear warm-up leads to.
        warmup: length of that warm-up, epochs.
        optimizer: ``adam``, with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101); or ``sgd``, with
            Nesterov's momentum of 0.9, which wants a higher learning rate.
        schedule: what the learning rate does after the warm-up: ``cosine`` to 0 (arXiv 1608.03983), or ``constant``.
        restart: the epoch after which the cosine begins anew, from the highest rate to 0 at the last epoch (a warm
            restart of the same paper); 0: never.
        weight_decay: decay of the weights of convolutions and fully connected layers. Leave it 0 where weights are
            binary: it pulls latent weights to 0, where any step may change their sign.
        label_smoothing: part of each label that is spread over all classes.
        distillation: weight of the teacher logits, the float twin's, in the loss; 1 minus it is that of the labels.
            The float twin itself has no teacher.
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

    epochs: int = field(metadata=within(0, MAX_EPOCHS))
    learning_rate: float = field(metadata=within(0.0, 100.0))
    warmup: float = field(default=1.0, metadata=within(0.0, MAX_EPOCHS))
    optimizer: str = field(default="adam", metadata=one_of("adam", "sgd"))
    schedule: str = field(default="cosine", metadata=one_of("cosine", "constant"))
    restart: int = 0
    weight_decay: float = field(default=0.0, metadata=within(0.0, 100.0))
    label_smoothing: float = field(default=0.0, metadata=within(0.0, 1.0))
    distillation: float = field(default=0.0, metadata=within(0.0, 1.0))
    temperature: float = field(default=4.0, metadata=within(0.1, 100.0))
    from_float: bool = False
    latent_clipping: bool = True
    batch_norm_reestimation: bool = True
    patience: int = field(default=0, metadata=within(0, MAX_EPOCHS))


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on, besides the data itself and the version of the libraries.

    Attributes:
        float_twin: the net with real weights and ReLU: the teacher of the other stages.
        activations: the net with binary activations and real weights, between the two others, as the first of the two
            parts of Martinez et al. (arXiv 2003.11535); no epochs: left out.
        binary: the net that is exported, unless there is a head stage.
        head: the same net once more, its convolutions frozen, trained from the first fully connected layer on
            (:mod:`bnn_perception.training.head`); no epochs: left out.
        batch: images a step, of all processes together.
        sampling: a class of n images is drawn in proportion to ``n ** sampling``; 1 leaves the data as it is, 0
            balances all classes.
        epoch_images: an epoch has at least so many real images; fewer are repeated, each time augmented anew.
        threads: CPU threads; 0 takes one for each core.
        precision: arithmetic of the training steps: ``float32``, ``bfloat16`` (PyTorch's autocast; weights, batch-norm
            statistics and whatever is measured stay float32), or ``auto``: bfloat16 on a GPU that has it, else float32.
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
    batch: int = field(default=128, metadata=within(2, 65536))
    sampling: float = field(default=0.5, metadata=within(0.0, 1.0))
    epoch_images: int = field(default=2000, metadata=within(0, 10**9))
    seed: int = field(default=1, metadata=within(0, 2**31 - 1))
    threads: int = field(default=0, metadata=within(0, 4096))
    precision: str = field(default="auto", metadata=one_of("auto", "float32", "bfloat16"))


#: Parts of the configuration that are mappings of fields with a default each.
PARTS = ("data", "augmentation", *STAGES)

#: Fields of the input that imported nets have; a net that is trained here takes the pixels as they are.
PIXEL_RANGE = ("mean", "std")

#: What ``train`` takes where the configuration names no network: 2.5 M weights, 32x32 pixels.
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
    # Errors of the file system, of PyYAML, and of Python where PyYAML converts a number, a date or nested brackets.
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
    """A configuration from the content of a YAML file."""
    values = _mapping("the configuration", content)
    _refuse_unknown("", values, Config)
    input_values = {"height": 32, "width": 32, **_mapping("input", values.get("input", {}))}
    _refuse_unknown("input", input_values, InputSpec, without=PIXEL_RANGE)
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
        key: _fill(key, getattr(defaults, key), values[key]) for key in PARTS if key in values
    }
    scalars = {key: values[key] for key in values if key not in {*parts, "input", "network"}}
    config = replace(_fill("", defaults, scalars), **parts)
    _check_fields(config)
    _check_names(config)
    return config


def override(
    config: Config,
    epochs: int | None = None,
    float_epochs: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Config:
    """The configuration with the values of the command line in their places; None changes nothing.

    Args:
        epochs: epochs of the binary stage, and at most so many of ``activations`` and ``head``.
        float_epochs: epochs of the float twin.
        seed, threads: as in :class:`Config`.
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
    _check_fields(result)
    return result


def to_mapping(config: Config) -> dict[str, Any]:
    """The configuration as plain values: what decides whether a run may be resumed, and what records keep."""
    content = asdict(config)
    return {
        **content,
        "input": {key: value for key, value in content["input"].items() if key not in PIXEL_RANGE},
        "network": [{"kind": layer.kind, **asdict(layer)} for layer in config.network.layers],
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


def _check_fields(config: Config) -> None:
    """Check every field against what it can be, and those that depend on another one.

    Raises:
        ConfigError: naming the field.
    """
    for stage in STAGES:
        spec: StageSpec = getattr(config, stage)
        if stage in REQUIRED_STAGES:
            _check_bounds(f"{stage}.epochs", spec.epochs, Bounds(1, MAX_EPOCHS))
        _check_bounds(f"{stage}.restart", spec.restart, Bounds(0, max(0, spec.epochs - 1)))
    _check_values("", config)
    for part in PARTS:
        _check_values(f"{part}.", getattr(config, part))
    smallest, largest = config.augmentation.scale
    if smallest > largest:
        raise ConfigError(f"augmentation.scale is {[smallest, largest]}; the smallest comes first")


def _check_values(prefix: str, spec: Any) -> None:
    """Check the fields of a dataclass that state bounds or choices."""
    for each in fields(spec):
        name, value = f"{prefix}{each.name}", getattr(spec, each.name)
        if "bounds" in each.metadata and isinstance(value, tuple):
            for index, item in enumerate(value):
                _check_bounds(f"{name}[{index}]", item, each.metadata["bounds"])
        elif "bounds" in each.metadata:
            _check_bounds(name, value, each.metadata["bounds"])
        if "choices" in each.metadata:
            _check_choice(name, value, each.metadata["choices"])


def _check_bounds(name: str, value: float, bounds: Bounds) -> None:
    if not bounds.low <= value <= bounds.high:
        raise ConfigError(f"{name} is {value}; it must be from {bounds.low} to {bounds.high}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it can be {', '.join(choices)}")


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


def _layer(where: str, value: object) -> LayerSpec:
    values = _mapping(where, value)
    kind = values.pop("kind", None)
    if kind not in LAYER_SPECS:
        raise ConfigError(f"{where}: kind {kind!r} is not one of {', '.join(LAYER_SPECS)}")
    cls = LAYER_SPECS[kind]
    _refuse_unknown(where, values, cls)
    for each in fields(cls):
        if each.name not in values:
            continue
        name, given = f"{where}.{each.name}", values[each.name]
        if "choices" in each.metadata:
            _check_choice(name, given, each.metadata["choices"])
            continue
        low, high = each.metadata["bounds"]
        if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
            raise ConfigError(f"{name} is {given!r}; it must be a whole number of at least {low}")
    if any(each.default is MISSING and each.name not in values for each in fields(cls)):
        known = ", ".join(each.name for each in fields(cls))
        raise ConfigError(f"{where}: a field of {kind} is missing; it has {known}")
    return cls(**values)


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


def _refuse_unknown(where: str, values: Mapping[str, Any], cls: type, without: tuple[str, ...] = ()) -> None:
    known = {f.name for f in fields(cls)}.difference(without)
    for key in values:
        if key not in known:
            prefix = f"{where}: " if where else ""
            raise ConfigError(f"{prefix}unknown field '{key}'; there are {', '.join(sorted(known))}")
