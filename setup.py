"""Packaging. The repository keeps `configs/` at the top; an installed revvideo carries it as `revvideo/configs/`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "revvideo/__init__.py").read_text("utf-8"), re.MULTILINE)[1]
README = HERE / "README.md"

setup(
    name="revvideo",
    version=VERSION,
    description="Reversible video transformers: train, evaluate and run them from raw video files",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["revvideo", "revvideo.*"]), "revvideo.configs"],
    package_dir={"revvideo.configs": "configs"},
    package_data={
        "revvideo.configs": ["**/*.yaml"],
        "revvideo.models": ["csrc/*.cpp"],
        "revvideo.report": ["*.css", "*.js"],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "pytorchvideo",
        "av>=17",
        # Decord publishes wheels for this platform only, and no sources that build with today's FFmpeg.
        'decord; platform_system == "Linux" and platform_machine == "x86_64"',
        "fvcore",
        "iopath",
        "submitit",
        "yacs",
        "numpy",
        "pillow",
        "PyYAML",
        "safetensors",
        "tqdm",
    ],
    extras_require={
        # One minor series of ruff: the next one may format differently.
        "dev": ["ruff==0.17.*", "pytest>=8", "pytest-xdist>=3.5", "tensorboard", "build", "setuptools>=77", "wheel"],
        "torchcodec": ["torchcodec"],
        "tensorboard": ["tensorboard"],
        "plot": ["matplotlib"],
        "export": ["onnx", "onnxscript", "onnxruntime"],
    },
    entry_points={"console_scripts": ["revvideo = revvideo.cli.main:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
