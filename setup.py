"""The optional C part; all else is in pyproject.toml. Where it cannot be compiled, mpiflux is installed without it."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("mpiflux.node._quick", ["mpiflux/node/quick.c"], optional=True)])
