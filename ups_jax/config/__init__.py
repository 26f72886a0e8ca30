"""The configuration of a run: typed, frozen, and checked when it is read.

`schema` has every key with its default and meaning, `loading` reads YAML files and overrides, and `digest` covers what
shapes a run's numbers. tools/config_reference.py writes docs/config.md from the schema.
"""

from ups_jax.config.digest import digest as digest
from ups_jax.config.digest import relevant as relevant
from ups_jax.config.loading import from_dict as from_dict
from ups_jax.config.loading import load as load
from ups_jax.config.loading import merge as merge
from ups_jax.config.loading import problems as problems
from ups_jax.config.schema import *  # noqa: F403
