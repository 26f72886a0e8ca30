"""The configuration of a run: typed, frozen, and checked when it is read.

`schema` has every key with its default and meaning, `loading` reads YAML files and overrides, and `digest` hashes the
values that determine the results of a run. tools/config_reference.py writes docs/config.md from the schema.
"""

from ups_jax.config.digest import digest as digest
from ups_jax.config.digest import relevant_values as relevant_values
from ups_jax.config.loading import apply_overrides as apply_overrides
from ups_jax.config.loading import find_problems as find_problems
from ups_jax.config.loading import from_dict as from_dict
from ups_jax.config.loading import load as load
from ups_jax.config.schema import *  # noqa: F403
