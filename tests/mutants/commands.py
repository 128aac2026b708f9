"""Changes for the rows of global options, privileges, exit statuses, state and configuration."""

from __future__ import annotations

from tests.mutants.change import Mutant as M

_NEEDS_ROOT = (
    "from qre.kernel.capabilities import require_capabilities\nrequire_capabilities('it', ('CAP_NET_ADMIN',))\n"
)

MUTANTS = {
    "`--json` makes `show` print JSON": (
        M("JSON", "show", "options.json", "False"),
        M("each key, of qre.ko without a daemon", "_counters_alone", "'forward'", "'forwarding'"),
        M("of `up` without a daemon", "_from_kernel", "'forward'", "'forwarding'"),
        M("of a daemon", "_rules", "('site_tcp', 'forward')", "('site_tcp',)"),
    ),
    "`--json` makes `show-cid-map` print JSON": (M("JSON", "show_cid_map", "options.json", "False"),),
    "other commands accept `--json` without an effect": (
        M("accepted", "_split", "word == '--json'", "word == '--json' and name in {'show', 'show-cid-map', 'check'}"),
        M(
            "without an effect",
            "showconf",
            "_print_json(load_file(arguments[0]), options)",
            "options.json or _print_json(load_file(arguments[0]), options)",
        ),
    ),
    "`--dry-run` prints the plan of `up`, `reload`, `down`, and changes nothing": (
        M("of up", "up", "_print(plan_up(profile, config))", "None"),
        M("of reload", "reload", "_print(plan_reload(profile, config))", "None"),
        M("of down", "down", "_print(plan_down(target, config))", "None"),
        M("each operation in order", "plan_of", "steps", "reversed(steps)"),
        M(
            "what goes, too",
            "address_lines",
            "[address for address in before.address if address not in spec.addresses]",
            "[]",
        ),
        M(
            "up changes nothing",
            "up",
            "_print(plan_up(profile, config))",
            "_print(plan_up(profile, config))\nup_profile(profile, config, keep_tun=False)",
        ),
        M(
            "reload changes nothing",
            "reload",
            "_print(plan_reload(profile, config))",
            "_print(plan_reload(profile, config))\nreload_profile(profile, config)",
        ),
        M(
            "down changes nothing",
            "down",
            "_print(plan_down(target, config))",
            "_print(plan_down(target, config))\ndown_profile(target, config)",
        ),
    ),
    "`--dry-run daemon` prints the plan, and changes nothing": (
        M("the steps of up", "daemon", "plan_up(profile, config, keep_tun=True)", "()"),
        M("and what comes after", "daemon", "_plan(profile, config, run_for_ms)", "()"),
        M(
            "of the server's own address",
            "_plan",
            "f'bind two sockets to UDP {profile.listen}'",
            "f'bind two sockets to UDP {profile.server.listen}'",
        ),
        M(
            "of the client's server",
            "_plan",
            "f'connect{source} to {profile.endpoint}, and reconnect whenever the session ends'",
            "f'connect{source} to {profile.client.endpoint}, and reconnect whenever the session ends'",
        ),
        M("of the client's own address", "_plan", "profile.underlay.client is not None", "False"),
        M("of the program", "_plan", "f'load {bpf_elf(config)}'", "'load the program'"),
        M("of the time", "_plan", "run_for_ms is not None", "False"),
        M("of the name servers", "_plan", "_names_lines(profile)", "()"),
        M(
            "of TCP to Dest",
            "_rules_lines",
            "lines.append(line(table_of(SITE_TCP[version], device), forwards, f'TCP {ports}'))",
        ),
        M(
            "of what is forwarded",
            "_rules_lines",
            "(mode := profile.server.forward) is not Forward.OFF",
            "(mode := None)",
        ),
        M("what qre.ko is told", "sync_line", "f'listen {profile.listen}'", "f'listen {profile.server.listen}'"),
        M(
            "changes nothing",
            "daemon",
            "plan_up(profile, config, keep_tun=True)",
            "(config.state_dir.mkdir(parents=True, exist_ok=True), plan_up(profile, config, keep_tun=True))[1]",
        ),
    ),
    "`--help` and `-h` print help; `daemon --help` has the daemon's own options": (
        M("--help", "_split", "word in ('--help', '-h')", "word == '-h'"),
        M("-h", "_split", "word in ('--help', '-h')", "word == '--help'"),
        M("the daemon's own options", "command_help", "command.options | GLOBAL_OPTIONS", "GLOBAL_OPTIONS"),
    ),
    "global options stand before or after the command": (
        M("--json before", "_split", "word == '--json'", "word == '--json' and name is not None"),
        M("--json after", "_split", "word == '--json'", "word == '--json' and name is None"),
        M("--dry-run before", "_split", "word == '--dry-run'", "word == '--dry-run' and name is not None"),
        M("--dry-run after", "_split", "word == '--dry-run'", "word == '--dry-run' and name is None"),
        M("--help before", "_split", "word in ('--help', '-h')", "word in ('--help', '-h') and name is not None"),
        M("--help after", "_split", "word in ('--help', '-h')", "word in ('--help', '-h') and name is None"),
    ),
    "every call that the reference writes works as it writes it, with every other name of its fields": (
        M("aliases of set", "set_device", "{'sni': 'ServerName'}", "{}"),
        M("kebab-case", "forms_of", "snake.replace('_', '-')", "snake"),
        M("snake_case", "forms_of", "(name.lower(), snake, snake.replace('_', '-'))", "(name.lower(), '', '')"),
        M("options before the command", "_split", "word == '--dry-run'", "word == '--dry-run' and name"),
    ),
    "`help`, `strip`, `showconf`, `session-plan` need none": (
        M("help", "command_help", "command = COMMANDS[name]", _NEEDS_ROOT + "command = COMMANDS[name]"),
        M("strip", "strip", "name = check_profile_name(arguments[0])", _NEEDS_ROOT + "name = arguments[0]"),
        M(
            "showconf",
            "showconf",
            "from qre.config.kind import load_file",
            _NEEDS_ROOT + "from qre.config.kind import load_file",
        ),
        M("session-plan", "session_plan", "del options", _NEEDS_ROOT),
    ),
    "`show` of qre.ko needs none; a daemon answers its owner": (
        M(
            "none",
            "show",
            "config = load_global(os.environ)",
            _NEEDS_ROOT + "config = load_global(os.environ)",
        ),
        M("its owner only: the mode", "bind_private", "masked(umask)", "masked(0o111)"),
        M("its owner only: who asks", "may_ask", "uid in (0, os.geteuid())", "True"),
        M("its owner is answered", "may_ask", "uid in (0, os.geteuid())", "False"),
        M(
            "who may not is told",
            "names_in",
            "'run as root' if isinstance(error, PermissionError) else f'see {what}'",
            "''",
        ),
    ),
    "a command that needs a capability names it": (
        M(
            "named",
            "require_capabilities",
            "f\"it needs {', '.join(missing)}, which {verb} missing\"",
            "'not permitted'",
        ),
        M("up, reload and down", "require_net_admin", "require_capabilities(what, ('CAP_NET_ADMIN',))", "None"),
        M("commands of the kernel", "kernel", "require_capabilities(command, ('CAP_NET_ADMIN',))", "None"),
        M(
            "commands of the shared port",
            "module",
            "require_capabilities(command, ('CAP_BPF', 'CAP_NET_ADMIN'))",
            "None",
        ),
        M("maps", "_create", "require_capabilities(command, ('CAP_BPF',))", "None"),
    ),
    "success is 0, every failure 2 with one line": (
        M(
            "success is 0",
            "_run",
            "return _call(command.target, rest, options)",
            "return _call(command.target, rest, options) or 1",
        ),
        M("failure is 2", "FAILURE", "2", "1"),
        M("one line", "error_line", "letter if letter.isprintable() else repr(letter)[1:-1]", "letter"),
        M(
            "one for each missing field",
            "_report",
            "error.errors if isinstance(error, UserErrors) else (error,)",
            "(error,)",
        ),
        M("no traceback", "main", "os.environ.get('QRE_DEBUG') == '1'", "True"),
        M(
            "the kernel's refusal, too",
            "_describe",
            "isinstance(error, QreError)",
            "type(error).__name__ in {'UserError', 'MachineError', 'PeerError'}",
        ),
    ),
    "an end by Ctrl-C is 130, one because nobody reads 141, both without a line": (
        M("130", "INTERRUPTED", "130", "2"),
        M("while it starts, too", "_call", "_signal.signal(_signal.SIGINT, _signal.default_int_handler)", "None"),
        M("141", "NOBODY_READS", "141", "2"),
        M("without a line", "_report", "isinstance(error, BrokenPipeError) and not _is_read()", "False"),
    ),
    "SIGTERM ends `up`, `reload` and `down` with 143, without a line": (
        M("143", "_TERMINATED", "128 + signal.SIGTERM", "2"),
        M("what was begun is undone", "terminable", "signal.signal(signal.SIGTERM, terminate)", "None"),
    ),
    "`show` tells role, counters, Dest profile, sessions, CIDs, map, shared socket, loader; all devices or one": (
        M(
            "role",
            "_device_lines",
            "f\"{device['profile'] or '(none)'} ({device['role'] or 'no role'}, {device['dataplane']} data plane)\"",
            "f\"{device['profile'] or '(none)'} ({device['dataplane']} data plane)\"",
        ),
        M("counters", "_device_lines", "yield from _counter_lines(device.get('counters'), device.get('rates'))"),
        M("Dest profile", "_device_lines", "yield from _dest_lines(device, now)"),
        M("sessions", "_sessions", "device.get('sessions') or ()", "()"),
        M("many sessions", "_device", "device.get('sessions') or ()", "()"),
        M("CIDs", "_steering_lines", "f\"{len(device['adopted_cids'])} adopted\"", "'0 adopted'"),
        M("map", "_steering_lines", "yield ('bpf map', _map_text(device.get('cid_map')))"),
        M("shared socket", "_steering_lines", "yield ('shared socket', _socket_text(shared))", "yield from ()"),
        M("loader", "_steering_lines", "device.get('shared_loader')", "None"),
        M("all devices", "show", "devices(config)", "devices(config)[:1]"),
        M("one", "show", "[device(config, arguments[0])] if arguments else devices(config)", "devices(config)"),
    ),
    "a server that shares another's port shows the loader and the map, too": (
        M("the map", "describe", "front_map(port, adopted or [], setup.front_device)", "None"),
        M("its pin", "front_map", "paths(Path(pin_dir), front)[0]", "pin_dir"),
        M("is it in sync", "front_map", "registered and not port.map_missing", "registered"),
        M("the loader", "describe", "front_loader(port, setup.front_device)", "None"),
        M("whose it is", "_steering_lines", "loader.get('front')", "None"),
    ),
    "an unknown device is an error": (
        M(
            "an error",
            "device",
            "raise UserError(f'device {name}', 'it is not up', did_you_mean(name, known, 'see `qre-tool show`'))",
            "return {'device': name, 'profile': None, 'role': None, 'dataplane': 'user', 'status': '', 'up': False, 'address': [], 'mtu': 0}",
        ),
        M("suggests the nearest", "device", "did_you_mean(name, known, 'see `qre-tool show`')", "''"),
    ),
    "`refresh DEVICE` probes Dest, stores and prints the profile: whether Dest is reachable, and the cache fresh": (
        M(
            "probes",
            "refresh",
            "look_at(dest, server_name)",
            "last or DestProfile(reachable=True, checked_at=int(time.time()))",
        ),
        M("stores", "refresh", "_keep(config, name, profile, described['dataplane'], found)"),
        M("prints", "_facts", "yield ('cipher', known.cipher or 'not known')"),
        M("fresh", "_freshness", "known.reachable and age * 1000 < config.dest_profile_ttl_ms", "False"),
        M("or stale", "_freshness", "age * 1000 < config.dest_profile_ttl_ms", "True"),
        M("needs a capability", "refresh", "require_capabilities('refresh', ('CAP_NET_ADMIN',))", "None"),
        M(
            "a site that is gone is an error",
            "refresh",
            "if error is not None:\n    raise MachineError(f'Dest {dest}', f'it cannot be reached: {error}', 'check that it answers HTTP/3 from here')",
        ),
    ),
    "`showconf FILE` prints a global or interface file as stable JSON": (
        M("a global file", "load_file", "is_profile(data)", "True"),
        M("an interface file", "load_file", "is_profile(data)", "False"),
        M(
            "the file alone",
            "load_global_file",
            "GlobalConfig(**settings)",
            "load_global(os.environ, global_config=text)",
        ),
        M("stable", "_object", "sorted(values)", "values"),
        M("secrets stay hidden", "to_json", "not show_keys", "False"),
    ),
    "`syncconf DEVICE FILE` syncs to the kernel; DEVICE must be the file's": (
        M("syncs", "syncconf", "sync('syncconf', profile)", "None"),
        M("must be the file's", "syncconf", "profile.device != device", "False"),
    ),
    "`delete DEVICE` removes the device's state": (
        M("removes", "delete", "qre.device_delete(device)", "None"),
        M("not a daemon's", "delete", "daemon_runs(load_global(os.environ), device)", "False"),
    ),
    "`set DEVICE role server` and `role client` make a minimal configuration and sync it": (
        M(
            "sync",
            "set_device",
            "sync('set', profile_from_fields(device_name(device), role, fields))",
            "profile_from_fields(device_name(device), role, fields)",
        ),
        M(
            "server",
            "_SET_FIELDS",
            "('Address', 'Listen', 'MTU', 'Dest', 'ServerName')",
            "('Address', 'Listen', 'MTU', 'ServerName')",
        ),
        M("client", "_SET_FIELDS", "('Address', 'Endpoint', 'MTU', 'ServerName')", "('Address', 'Endpoint', 'MTU')"),
        M("fields of the role", "set_device", "_SET_FIELDS[role]", "_SET_FIELDS[Role.CLIENT]"),
        M("the word role", "set_device", "word.lower() != 'role'", "False"),
        M("the values", "synced_settings", "profile.mtu", "1400"),
    ),
    "`set`'s placeholders are the reference's": (
        M("private key", "PLACEHOLDERS", "'A' * 43 + '='", "'AQEB' * 10 + 'AQE='"),
        M("public key", "PLACEHOLDERS", "'AQEB' * 10 + 'AQE='", "'A' * 43 + '='"),
        M(
            "short ids of a server",
            "PLACEHOLDERS",
            "{'RealityPrivateKey': 'A' * 43 + '=', 'RealityShortIds': '00'}",
            "{'RealityPrivateKey': 'A' * 43 + '=', 'RealityShortIds': '01'}",
        ),
        M(
            "short id of a client",
            "PLACEHOLDERS",
            "{'RealityPublicKey': 'AQEB' * 10 + 'AQE=', 'RealityShortId': '00'}",
            "{'RealityPublicKey': 'AQEB' * 10 + 'AQE=', 'RealityShortId': '01'}",
        ),
    ),
    "`set`'s fields have their aliases: `sni`, `server-name`, `server_name`, `persistent-keepalive`, …": (
        M("sni", "set_device", "{'sni': 'ServerName'}", "{}"),
        M("kebab-case", "forms_of", "snake.replace('_', '-')", "snake"),
        M(
            "snake_case",
            "forms_of",
            "(name.lower(), snake, snake.replace('_', '-'))",
            "(name.lower(), snake.replace('_', '-'))",
        ),
        M(
            "lower case",
            "forms_of",
            "(name.lower(), snake, snake.replace('_', '-'))",
            "(snake, snake.replace('_', '-'))",
        ),
    ),
}
