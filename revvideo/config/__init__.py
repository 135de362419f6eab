"""The config: PySlowFast's YAML tree, loaded, checked, normalised and frozen. Imports no torch."""

from revvideo.config.arguments import add_config_arguments, config_from_arguments
from revvideo.config.batch import BatchPlan, batch_plan
from revvideo.config.defaults import IGNORED_KEYS, KEYS, default_config
from revvideo.config.loader import config_notes, dump_config, load_config
from revvideo.config.shipped import list_shipped_configs, shipped_configs_dir
from revvideo.config.values import ConfigError

__all__ = [
    "IGNORED_KEYS",
    "KEYS",
    "BatchPlan",
    "ConfigError",
    "add_config_arguments",
    "batch_plan",
    "config_from_arguments",
    "config_notes",
    "default_config",
    "dump_config",
    "list_shipped_configs",
    "load_config",
    "shipped_configs_dir",
]
