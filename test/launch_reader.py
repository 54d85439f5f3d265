"""Reads a launch file without ROS: stand-ins for what launch files import, which record what would be started.

They do what launch and launch_ros do with arguments, as far as the files of this package need it: an argument that was
not given takes its default, one without a default is an error, an included file sees the arguments of the file around
it and sets its own for what follows.
"""

from __future__ import annotations

import importlib.util
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock


class LaunchError(Exception):
    """What launch would raise."""


@dataclass
class Context:
    """The values of arguments, and the nodes that are started."""

    values: dict[str, str]
    arguments: dict[str, str] = field(default_factory=dict)
    started: list[StartedNode] = field(default_factory=list)

    @property
    def launch_configurations(self) -> dict[str, str]:
        """As launch calls the values."""
        return self.values

    def resolve(self, value: Any) -> Any:
        """A substitution, or what holds some, with its values."""
        if isinstance(value, LaunchConfiguration):
            return value.perform(self)
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.resolve(entry) for entry in value)
        return value


@dataclass
class StartedNode:
    """A node that the launch file starts, all values resolved."""

    package: str
    executable: str
    name: str
    namespace: str = ""
    parameters: list[Any] = field(default_factory=list)
    remappings: list[tuple[str, str]] = field(default_factory=list)
    output: str = "log"
    on_exit: Any = None
    respawn: bool = False
    respawn_delay: float | None = None


@dataclass
class LaunchConfiguration:
    name: str

    def perform(self, context: Context) -> str:
        if self.name not in context.values:
            raise LaunchError(f"launch configuration '{self.name}' does not exist")
        return context.values[self.name]


@dataclass
class DeclareLaunchArgument:
    name: str
    default_value: str | None = None
    description: str = ""

    def visit(self, context: Context) -> None:
        context.arguments.setdefault(self.name, self.description)
        if self.name not in context.values:
            if self.default_value is None:
                raise LaunchError(f"required launch argument '{self.name}' was not provided")
            context.values[self.name] = context.resolve(self.default_value)


@dataclass
class OpaqueFunction:
    function: Any

    def visit(self, context: Context) -> None:
        for action in self.function(context) or ():
            action.visit(context)


class Node:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def visit(self, context: Context) -> None:
        context.started.append(StartedNode(**context.resolve(self.fields)))


@dataclass
class LaunchDescription:
    actions: list[Any]

    def visit(self, context: Context) -> None:
        for action in self.actions:
            action.visit(context)


@dataclass
class PythonLaunchDescriptionSource:
    path: str


class IncludeLaunchDescription:
    def __init__(self, source: PythonLaunchDescriptionSource, launch_arguments: Any = ()) -> None:
        self.source = source
        self.launch_arguments = list(launch_arguments)

    def visit(self, context: Context) -> None:
        context.values.update(context.resolve(value) for value in self.launch_arguments)
        description(Path(self.source.path)).visit(context)


def stand_in(name: str, *members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for member in members:
        setattr(module, member.__name__, member)
    return module


MODULES = [
    stand_in("launch", LaunchDescription),
    stand_in("launch.actions", DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction),
    stand_in("launch.launch_description_sources", PythonLaunchDescriptionSource),
    stand_in("launch.substitutions", LaunchConfiguration),
    stand_in("launch_ros"),
    stand_in("launch_ros.actions", Node),
]


def description(path: Path) -> LaunchDescription:
    """What the launch file's generate_launch_description returns."""
    with mock.patch.dict("sys.modules", {module.__name__: module for module in MODULES}):
        spec = importlib.util.spec_from_file_location(path.name.replace(".", "_"), path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.generate_launch_description()


def shown(path: Path) -> set[str]:
    """The arguments that `ros2 launch FILE --show-args` lists: those that are declared without anything being run.

    An included file's are among them, but for those that the including file sets.
    """
    names: set[str] = set()
    for action in description(path).actions:
        if isinstance(action, DeclareLaunchArgument):
            names.add(action.name)
        elif isinstance(action, IncludeLaunchDescription):
            names |= shown(Path(action.source.path)) - {name for name, _ in action.launch_arguments}
    return names


def launch(path: Path, **arguments: str) -> Context:
    """Launch a file with arguments as `ros2 launch FILE NAME:=VALUE ...` does."""
    context = Context(dict(arguments))
    description(path).visit(context)
    return context
