"""Build the native parts (nsupervisor/keeper/native) with the package; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build
from setuptools.errors import SetupError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

PLACE = "nsupervisor/keeper/native"


def load_builder():
    """Load `build.py` by its path: importing the package needs its dependencies."""
    spec = importlib.util.spec_from_file_location(
        "native_build", Path(__file__).with_name("nsupervisor") / "keeper/native/build.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(Command):
    """Compile the native parts: into the build directory, or for an editable install into the source tree."""

    description = "compile the init"
    user_options = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        builder = load_builder()
        try:
            builder.build(builder.HERE if self.editable_mode else Path(self.build_lib, PLACE))
        except builder.BuildError as error:
            raise SetupError(str(error)) from None

    def get_outputs(self):
        return [str(path) for path in load_builder().outputs(Path(self.build_lib, PLACE))]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return [str(path.relative_to(Path(__file__).parent.resolve())) for path in load_builder().sources()]


class Build(build):
    """`build` with one step more."""

    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    """A wheel for one kind of processor and any Python 3: the native parts use neither Python's ABI nor a C library."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class NativeDistribution(Distribution):
    """A distribution whose wheels are for one platform."""

    def has_ext_modules(self):
        return True


setup(
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
    distclass=NativeDistribution,
)
