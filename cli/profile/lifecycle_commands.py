"""The commands ``up``, ``down`` and ``reload``: what the command line adds to ``qre/device/lifecycle``.

Which profile, the device's lock, whether a daemon holds it, and ``--dry-run``. Nothing is changed before the profile
was read and validated.
"""

from __future__ import annotations

import os
import sys

from qre.cli.commands import Options
from qre.cli.undo import terminable
from qre.config.model import GlobalConfig, Profile
from qre.config.profile import load_profile, profile_path
from qre.config.settings import load_global
from qre.config.values import DEVICE_LENGTH
from qre.device.control_client import RELOAD_TIMEOUT, ask_daemon, daemon_runs
from qre.device.device_lock import hold_device
from qre.device.lifecycle import (
    down_and_up,
    plan_reload,
    plan_up,
    print_notice,
    refuse_replacement,
    reload_profile,
    require_net_admin,
    up_profile,
)
from qre.device.lifecycle_down import device_up_as, down_profile, left_tables, plan_down
from qre.device.state import load_state
from qre.errors import UserError, UserErrors


def up(arguments: list[str], options: Options) -> int:
    """``up PROFILE``."""
    config = load_global(os.environ)
    profile = _load(arguments[0], config, "up", changes=not options.dry_run)
    if options.dry_run:
        _refuse_daemon(profile.name, profile.device, config)
        _print(plan_up(profile, config))
        return 0
    with terminable(), hold_device(config, profile.device, "up"):
        up_profile(profile, config, keep_tun=False)
    return 0


def down(arguments: list[str], options: Options) -> int:
    """``down PROFILE``; without the profile's file, by its saved state, its device's alias, or rules that it left."""
    config = load_global(os.environ)
    name = arguments[0]
    target = _load_or_known(name, config, changes=not options.dry_run)
    device = _device(target, config)
    _refuse_daemon(name, device, config)
    if options.dry_run:
        _print(plan_down(target, config))
        return 0
    with terminable(), hold_device(config, device, "down"):
        down_profile(target, config)
    return 0


def reload(arguments: list[str], options: Options) -> int:
    """``reload PROFILE``: a running daemon is asked to do it."""
    config = load_global(os.environ)
    profile = _load(arguments[0], config, "reload", changes=not options.dry_run)
    saved = load_state(config, profile.name)
    if saved is not None:
        refuse_replacement(profile, saved, down_and_up(profile.name))
    asks = daemon_runs(config, profile.device)
    if options.dry_run:
        _print([f"ask the daemon of {profile.device} to reload"] if asks else [])
        _print(plan_reload(profile, config))
    elif asks:
        ask_daemon(config, profile.device, "reload", RELOAD_TIMEOUT)
    else:
        with terminable(), hold_device(config, profile.device, "reload"):
            reload_profile(profile, config)
    return 0


def _load_or_known(name: str, config: GlobalConfig, *, changes: bool) -> Profile | str:
    """The profile; or its name alone, when its file is gone or has errors, and the saved state or a device's alias
    says what is up."""
    path = profile_path(name, config)
    if changes and not os.access(path, os.R_OK):
        require_net_admin(f"down {name}")
    try:
        return _load(name, config, "down", changes=changes)
    except UserError as error:
        if load_state(config, name) is None and not device_up_as(name) and not left_tables(config, name):
            raise
        if os.path.lexists(path):
            for each in error.errors if isinstance(error, UserErrors) else (error,):
                print_notice(str(each))
            print_notice(f"profile {name}: it is taken down without its file, and no hook is run")
        return name


def _load(name: str, config: GlobalConfig, command: str, *, changes: bool) -> Profile:
    """The validated profile. A user who can neither read it nor change anything gets the missing capability as the
    error."""
    path = profile_path(name, config)
    if changes and not os.access(path, os.R_OK):
        require_net_admin(f"{command} {name}")
    profile = load_profile(name, config, os.environ)
    if changes:
        require_net_admin(f"{command} {name}")
    return profile


def _device(target: Profile | str, config: GlobalConfig) -> str:
    """The device that the profile uses or would use."""
    saved = load_state(config, target if isinstance(target, str) else target.name)
    if saved is not None:
        return saved.device
    return device_up_as(target) or target[:DEVICE_LENGTH] if isinstance(target, str) else target.device


def _refuse_daemon(name: str, device: str, config: GlobalConfig) -> None:
    if daemon_runs(config, device):
        remedy = f"stop the daemon first: `systemctl stop qred@{name}`"
        raise UserError(f"device {device}", "a daemon holds it", remedy)


def _print(plan: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in plan)
