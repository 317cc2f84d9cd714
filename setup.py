"""Builds the C library as pymixtral._pmx (cffi, API mode, limited API) and installs quantize/ as
pymixtral.quantize.
"""

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext


class BuildExt(build_ext):
    """Without the folders of this machine's Python: some builds of Python pass their own on, and a
    wheel would carry it as RUNPATH.
    """

    def build_extensions(self):
        linker = self.compiler.linker_so
        self.compiler.set_executables(linker_so=[part for part in linker if not part.startswith(("-Wl,-rpath", "-L"))])
        super().build_extensions()


setup(
    packages=[
        *find_packages(include=["pymixtral*"]),
        "pymixtral.quantize",
        *(f"pymixtral.quantize.{room}" for room in find_packages("quantize")),
    ],
    package_dir={"pymixtral": "pymixtral", "pymixtral.quantize": "quantize"},
    include_package_data=False,  # only what is named here, not all that the sdist holds
    package_data={"pymixtral": ["py.typed", "data/*.gguf", "server/page/*"]},
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    zip_safe=False,
)
