"""Builds the C library as pymixtral._pmx (cffi, API mode, limited API) and installs quantize/ as pymixtral.quantize."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["pymixtral*"]),
        "pymixtral.quantize",
        *(f"pymixtral.quantize.{room}" for room in find_packages("quantize")),
    ],
    package_dir={"pymixtral": "pymixtral", "pymixtral.quantize": "quantize"},
    include_package_data=False,  # only what is named here, not all that the sdist holds
    package_data={"pymixtral": ["py.typed", "data/*.gguf"]},
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    zip_safe=False,
)
