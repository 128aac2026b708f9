"""Changes for the rows of a profile's life and of the daemon."""

from __future__ import annotations

from tests.mutants.change import Mutant as M

MUTANTS = {
    "`strip PROFILE` reads `${QRE_CONFIG_DIR:-/etc/qre/dev}/PROFILE.conf` and prints normalised JSON": (
        M("QRE_CONFIG_DIR", "load_global", "environ.get('QRE_CONFIG_DIR')", "''"),
        M("/etc/qre/dev", "GlobalConfig", "path_field(default='/etc/qre/dev')", "path_field(default='/etc/qre')"),
        M("PROFILE.conf", "SUFFIX", "'.conf'", "'.profile'"),
        M("normalised", "parse_networks", "_cidr(piece).network", "_cidr(piece)"),
        M(
            "JSON",
            "to_json",
            "{'kind': kind, **{snake_case(key): value for key, value in values.items()}}",
            "{'kind': kind, **values}",
        ),
    ),
    "it reads the global configuration for the state directory": (
        M(
            "reads it",
            "strip",
            "load_global(os.environ)",
            "__import__('qre.config.model', fromlist=['it']).GlobalConfig(config_dir=os.environ['QRE_CONFIG_DIR'])",
        ),
    ),
    "a profile's name has ASCII letters, digits, `-`, `_`, does not begin with `.`, holds no `/` or `\\`": (
        M(
            "letters",
            "_NAME_CHARACTERS",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'",
            "'abcdefghijklmnopqrstuvwxyz0123456789._-'",
        ),
        M(
            "digits",
            "_NAME_CHARACTERS",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-'",
        ),
        M(
            "hyphen",
            "_NAME_CHARACTERS",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._'",
        ),
        M(
            "underscore",
            "_NAME_CHARACTERS",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-'",
        ),
        M(
            "a dot inside",
            "_NAME_CHARACTERS",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'",
            "'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-'",
        ),
        M(
            "ASCII",
            "is_profile_name",
            "_NAME_CHARACTERS.issuperset(name)",
            "_NAME_CHARACTERS.issuperset(filter(str.isascii, name))",
        ),
        M("no leading dot", "is_profile_name", "not name.startswith('.')", "True"),
        M(
            "no slash",
            "is_profile_name",
            "_NAME_CHARACTERS.issuperset(name)",
            "_NAME_CHARACTERS.issuperset(name.replace('/', ''))",
        ),
        M(
            "no backslash",
            "is_profile_name",
            "_NAME_CHARACTERS.issuperset(name)",
            "_NAME_CHARACTERS.issuperset(name.replace('\\\\', ''))",
        ),
    ),
    "`up` validates the profile first": (
        M("validates", "_mtu", "values.get('MTU', v.number(v.MIN_MTU, v.MAX_MTU))", "values.get('MTU', int)"),
        M("every mistake", "Problems.raise_if_any", "tuple(self.errors())", "tuple(self.errors()[:1])"),
        M(
            "before the module is loaded",
            "up",
            "_load(arguments[0], config, 'up', changes=not options.dry_run)",
            "(__import__('qre.device.kernel_module', fromlist=['it']).load_module(),"
            " _load(arguments[0], config, 'up', changes=not options.dry_run))[1]",
        ),
    ),
    "`up` loads qre.ko unless `QRE_MODULE_LOAD=false`": (
        M("loads", "choose_dataplane", "load_module() if wants_module(config) else ''", "''"),
        M(
            "unless it is switched off",
            "wants_module",
            "config.module_load and config.dataplane is not Dataplane.USER",
            "config.dataplane is not Dataplane.USER",
        ),
        M(
            "the variable",
            "_ENVIRONMENT",
            '{"QRE_STATE_DIR": "StateDir", "RUNTIME_DIRECTORY": "RuntimeDir", "QRE_MODULE_LOAD": "ModuleLoad", "QRE_DATAPLANE": "Dataplane", "QRE_BPF_ELF": "BpfElf", "QRE_BPF_PIN_DIR": "BpfPinDir", "QRE_LOG": "LogLevel"}',
            '{"QRE_STATE_DIR": "StateDir", "RUNTIME_DIRECTORY": "RuntimeDir", "QRE_DATAPLANE": "Dataplane", "QRE_BPF_ELF": "BpfElf", "QRE_BPF_PIN_DIR": "BpfPinDir", "QRE_LOG": "LogLevel"}',
        ),
    ),
    "`up` runs PreUp, syncs, sets the link up, replaces addresses, runs PostUp, saves the state, in this order": (
        M("PreUp", "up_steps", "hook_steps('PreUp', hooks.pre_up, device)", "[]"),
        M(
            "PreUp before the sync",
            "up_steps",
            "return steps",
            "return sorted(steps, key=lambda step: step.lines[:1] and step.lines[0].startswith('PreUp'))",
        ),
        M("syncs", "up_steps", "steps.append(Step((line,), up.make_device, up.unmake_device))"),
        M("sets the link up", "up_steps", "steps.append(Step((f'set {device} up, MTU {spec.mtu}',), up.set_up))"),
        M(
            "replaces addresses",
            "up_steps",
            "steps.append(Step(address_lines(up.before, spec), up.replace_addresses, up.remove_addresses_and_routes))",
        ),
        M(
            "addresses before PostUp",
            "up_steps",
            "return steps",
            "return sorted(steps, key=lambda step: bool(step.lines) and step.lines[0].startswith('set address'))",
        ),
        M("PostUp", "up_steps", "hook_steps('PostUp', hooks.post_up, device)", "[]"),
        M("saves the state", "_Up.save", "save_state(self.config, state_of(self.profile, self.spec.table))", "None"),
        M(
            "PostUp before the state",
            "up_steps",
            "steps += hook_steps('PostUp', hooks.post_up, device)\nsteps.append(Step((f'save state to {state_path(up.config, up.profile.name)}',), up.save))",
            "steps.append(Step((f'save state to {state_path(up.config, up.profile.name)}',), up.save))\nsteps += hook_steps('PostUp', hooks.post_up, device)",
        ),
    ),
    "a failed `up` deletes addresses, device state and profile state": (
        M("undone", "run_steps", "reversed(begun)", "()"),
        M(
            "device state",
            "up_steps",
            "Step((line,), up.make_device, up.unmake_device)",
            "Step((line,), up.make_device)",
        ),
        M(
            "addresses and routes",
            "up_steps",
            "Step(address_lines(up.before, spec), up.replace_addresses, up.remove_addresses_and_routes)",
            "Step(address_lines(up.before, spec), up.replace_addresses)",
        ),
        M(
            "profile state, an earlier one's, too",
            "_Up.give_up",
            "remove_state(self.config, self.profile.name)",
            "None",
        ),
        M("an earlier one's device", "_Up.give_up", "self.rtnl.delete_link(link)", "None"),
        M(
            "at every step",
            "up_steps",
            "Step((line,), up.choose_dataplane, up.give_up)",
            "Step((line,), up.choose_dataplane)",
        ),
        M("rules stay", "_Up.remove_addresses_and_routes", "self.rules_before", "{}"),
        M("and come back", "_Up.give_up", "put_rules(self.rtnl, closed_rules(version, table))", "None"),
        M("the first error is told", "run_steps", "raise", "raise MachineError('up', 'it failed') from None"),
    ),
    "`reload` reads the profile again, syncs, replaces addresses": (
        M("reads again", "reload", "reload_profile(profile, config)", "None"),
        M(
            "syncs",
            "reload_steps",
            "Step((f'set {up.profile.device} up, MTU {up.spec.mtu}',), up.set_up, up.restore)",
            "Step((), lambda: None, up.restore)",
        ),
        M("new addresses", "sync_addresses", "rtnl.put_address(link, interface)", "None"),
        M("old addresses go", "_delete_addresses", "rtnl.delete_address(link, interface)", "None"),
        M(
            "without a state",
            "_prepare_reload",
            "saved if saved is not None else _found(profile, link, rtnl)",
            "saved",
        ),
        M(
            "and is saved",
            "reload_steps",
            "Step((f'save state to {state_path(up.config, up.profile.name)}',), up.save)",
            "Step((), lambda: None)",
        ),
        M("a daemon is asked", "reload", "ask_daemon(config, profile.device, 'reload', RELOAD_TIMEOUT)", "None"),
    ),
    "`reload` deletes saved addresses that differ first": (
        M(
            "first",
            "sync_addresses",
            "_delete_addresses(rtnl, link, going, [entry.interface for entry in present])",
            "for interface in spec.addresses:\n    rtnl.put_address(link, interface)\n"
            "_delete_addresses(rtnl, link, going, [entry.interface for entry in present])",
        ),
        M("in the plan, too", "address_lines", "gone", "()"),
        M("routes stay", "_delete_addresses", "rtnl.put_placeholder(link)", "None"),
        M("a network's route stays", "sync_addresses", "rtnl.add_bridge(link, network)", "None"),
        M("and its stand-in goes", "sync_routes", "rtnl.delete_bridge(link, prefix)", "None"),
        M("other addresses stay", "_delete_addresses", "rtnl.keep_secondaries(link)", "None"),
    ),
    "`down` runs PreDown, deletes saved or configured addresses, the device's state, runs PostDown, removes the state": (
        M("PreDown", "_steps", "hook_steps('PreDown', down.hooks.pre_down, device)", "[]"),
        M("PreDown comes first", "down_profile", "[*pre, *rest]", "[*rest, *pre]"),
        M("addresses", "_Down.clear", "clear_device(self.rtnl, self.device, 0, self.addresses, kept)", "None"),
        M("device", "_Down.delete_device", "self.rtnl.delete_link(link)", "None"),
        M("PostDown", "_steps", "hook_steps('PostDown', down.hooks.post_down, device)", "[]"),
        M(
            "PostDown after the device",
            "_steps",
            "rest += hook_steps('PostDown', down.hooks.post_down, device)",
            "rest = [*hook_steps('PostDown', down.hooks.post_down, device), *rest]",
        ),
        M("state", "_Down.forget", "remove_state(self.config, self.name)", "None"),
        M(
            "the saved device",
            "_prepare",
            "saved.device if saved is not None else configured.device if configured is not None else device_up_as(name)",
            "configured.device if configured is not None else device_up_as(name)",
        ),
    ),
    "`down` has no precondition: of a profile that is not up it cleans what is there, and succeeds": (
        M(
            "succeeds",
            "_prepare",
            "listen = None if by_daemon else _port_of(configured, saved)",
            "if saved is None and link is None:\n    raise UserError(f'profile {name}', 'it is not up')\n"
            "listen = None if by_daemon else _port_of(configured, saved)",
        ),
        M("its rules", "_tables", "orphaned_tables(rtnl, config, configured.name, configured.device)", "set()"),
        M("and nobody else's", "orphaned_tables", "{state.table for state in others if state is not None}", "set()"),
        M("its pins", "_prepare", "pin_paths(config.bpf_pin_dir, device)", "()"),
        M("its files", "_prepare", "runtime_paths(config, name, device)", "()"),
        M("by its device alone", "down", "device_up_as(name)", "False"),
    ),
    "it does what `up` does first": (
        M(
            "up",
            "Daemon._run",
            "up_profile(self._profile, self._config, keep_tun=True)",
            "__import__('qre.device.lifecycle', fromlist=['it']).UpResult(None, Dataplane.USER, 0)",
        ),
        M("takes over from up", "_prepare", "not keep_tun", "True"),
        M(
            "the hooks, too",
            "up_steps",
            "hook_steps('PostUp', hooks.post_up, device)",
            "[] if up.keep_tun else hook_steps('PostUp', hooks.post_up, device)",
        ),
    ),
    "a server holds the listening socket, the loader, handshakes, sessions, CIDs, and cleans up": (
        M("the socket", "Crew._hand_everything", "self._pair is not None", "False"),
        M("handshakes", "Recogniser.accept", "self._acceptance.remember(hello.found)", "False"),
        M("sessions", "Acceptance._install", "self.sessions.install(handed_over, underlay)", "None"),
        M("the loader attaches", "BpfLoader.start", "maps.attach(held['udp_userspace'])", "None"),
        M("the pins", "Daemon._pin", "pin(self._config.bpf_pin_dir, self._profile.device, fds)", "None"),
        M(
            "sessions are told",
            "describe",
            "[_session(session, names) | _health(crew, session) for session in sessions]",
            "[]",
        ),
        M("CIDs are adopted", "BpfLoader._adopt", "maps.adopt(cid)", "None"),
        M(
            "cleans up the pins",
            "Daemon._taken_down",
            "unpin(self._config.bpf_pin_dir, self._profile.device)",
            "None",
        ),
        M(
            "cleans up the rest",
            "Daemon._taken_down",
            "down_profile(self._profile, self._config, by_daemon=True, closed=self._closed)",
            "None",
        ),
        M("cleans up in RuntimeDir", "Daemon._taken_down", "remove_left(path)", "None"),
    ),
    "a client installs its session, writes the ready file, reconnects with bounded backoff": (
        M(
            "installs",
            "Client._attempt_on",
            "self._sessions.install(handed_over, underlay_of(local, address[1]), socket_number=number)",
            "None",
        ),
        M("ready file", "ProfileFiles.set_ready", "self._ready.touch(mode=420)", "None"),
        M("and removes it", "ProfileFiles.set_ready", "self._ready.unlink(missing_ok=True)", "None"),
        M(
            "reconnects",
            "Client._run",
            "if await self._early.wait(pause, any_network=cause not in VISITS, clock=cause in BY_THE_CLOCK):\n    pauses.network_changed()",
            "return",
        ),
        M("backoff grows", "Backoff.next", "step * 2", "step"),
        M("a pause is bounded", "Backoff.next", "min(self._longest, max(self._shortest, pause))", "pause"),
    ),
    "`--config-dir`, `--global-config`, `--state-dir`, `--bpf-elf`, `--pin-dir` take effect and set their variables": (
        M("--config-dir", "_VARIABLES", "'QRE_CONFIG_DIR'", "'QRE_CONFIG'"),
        M("--global-config", "_VARIABLES", "'QRE_GLOBAL_CONFIG'", "'QRE_GLOBAL'"),
        M("--state-dir", "_VARIABLES", "'QRE_STATE_DIR'", "'QRE_STATE'"),
        M("--bpf-elf", "_VARIABLES", "'QRE_BPF_ELF'", "'QRE_ELF'"),
        M("--pin-dir", "_VARIABLES", "'QRE_BPF_PIN_DIR'", "'QRE_PIN_DIR'"),
        M("the variables", "daemon", "os.environ.update(environment)", "None"),
    ),
    "a path that one of them names is there": (
        M(
            "--config-dir",
            "_check_there",
            "('--config-dir', os.path.isdir, 'directory')",
            "('--x', os.path.isdir, '')",
        ),
        M(
            "--global-config",
            "_check_there",
            "('--global-config', os.path.exists, 'file')",
            "('--x', os.path.isdir, '')",
        ),
        M("--bpf-elf", "_check_there", "('--bpf-elf', os.path.exists, 'file')", "('--x', os.path.isdir, '')"),
        M("--pin-dir", "_check_there", "('--pin-dir', os.path.isdir, 'directory')", "('--x', os.path.isdir, '')"),
        M("the file of an option, whoever asks", "_from_file", "needed", "False"),
        M("all at once", "_check_there", "tuple(errors)", "tuple(errors[:1])"),
    ),
    "`--server-underlay`, `--client-underlay` replace the addresses": (
        M("a server's own", "Profile.listen", "self.underlay.server or self.server.listen", "self.server.listen"),
        M("a client's server", "Profile.endpoint", "given is not None", "False"),
        M("a client's own", "Daemon._set_up", "str(client.ip) if client else ''", "''"),
        M("a client's own port", "Daemon._set_up", "client.port if client else 0", "0"),
    ),
    "`--run-for-ms` is not zero and ends with 0 and everything cleaned up": (
        M("not zero", "_run_for_ms", "0 < int(text) <= _MAX_U64", "0 <= int(text) <= _MAX_U64"),
        M("a u64", "_run_for_ms", "0 < int(text) <= _MAX_U64", "0 < int(text)"),
        M("ends", "Daemon._handle", "self._options.run_for_ms is not None", "False"),
        M(
            "with 0",
            "Daemon.run",
            "if self._failure:\n    raise (PassingError if self._may_pass else MachineError)("
            "f'daemon {self._profile.name}', self._failure)\nreturn 0",
            "return 1",
        ),
        M(
            "everything cleaned up",
            "Daemon._taken_down",
            "down_profile(self._profile, self._config, by_daemon=True, closed=self._closed)",
            "None",
        ),
    ),
    "`systemctl reload qred@PROFILE` has the daemon read its profile again": (
        M(
            "the unit's signal",
            "qred@.service",
            "ExecReload=/usr/bin/qre-tool reload %i",
            "ExecReload=/usr/bin/qre-tool help reload",
        ),
        M("to the daemon", "qred@.service", "ExecReload=/usr/bin/qre-tool reload %i", "ExecReload=/bin/true %i"),
        M("reads again", "Daemon._reload_once", "self._load()", "self._profile"),
        M(
            "applies it",
            "Daemon._reload_once",
            "self._tell(ApplyReload(config=config))",
            "self._reloaded.set_result('')",
        ),
    ),
    "several server profiles on one Listen share one front": (
        M("join", "PortPlace.lead_or_join", "return False", "raise MachineError('Listen', 'in use')"),
        M("the user data plane is refused by name", "refusal", "own.user_dataplane or its.user_dataplane", "False"),
    ),
}
