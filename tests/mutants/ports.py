"""Changes for the rows of the shared port by hand."""

from __future__ import annotations

from tests.mutants.change import Mutant as M

MUTANTS = {
    "`shared-port-loader` loads, sets the CID length, binds, fills, pins, attaches, and cleans up on a signal": (
        M(
            "sets the CID length",
            "load",
            "_set_constants(handle, sum((1 << length for length in cid_lengths(routed_cid_len))), listen)",
            "None",
        ),
        M("binds", "_pair", "server_pair(port.ip, port.port)", "server_pair('127.0.0.1', 0)"),
        M("fills", "set_up", "maps.slot_in(slot, front.pair[slot].fileno())", "None"),
        M("pins", "_pin", "pin(port.pin_dir, port.label, [maps.cid_routes, maps.sockets, maps.program])", "None"),
        M("attaches", "set_up", "maps.attach(front.pair[SLOT_USER].fileno())", "None"),
        M("ends on a signal", "EndSignals.wait", "self.received", "False"),
        M("removes the pins", "_pin", "unpin(port.pin_dir, port.label)", "None"),
        M("closes the sockets", "_close", "one.close()", "os.dup(one.fileno())"),
    ),
    "it ends when RunForMs is over": (M("ends", "stay", "end.wait(lasting.run_for_s)", "end.wait(None)"),),
    "it takes UserspaceSocketFd in place of UserspaceBind": (
        M("takes it", "shared_port_loader", "fields.socket_fd", "None"),
        M("the port's", "_given_socket", "bound != (ip, port)", "False"),
        M("a socket of the group", "_given_socket", "descriptors.check(fd, expected)", "None"),
    ),
    "it registers the CID map and the shared socket with qre.ko": (
        M("the CID map", "_register", "_not_twice(lambda: qre.cid_map_register(front.maps.cid_routes))", "None"),
        M(
            "the shared socket",
            "_register",
            "_not_twice(lambda: qre.shared_socket_register(front.pair[SLOT_KERNEL].fileno()))",
            "None",
        ),
        M("the loader", "_register", "qre.loader_set(told)", "None"),
        M(
            "and takes it back: map",
            "_register",
            "undo.add(lambda: _unregister('the CID map', qre.cid_map_unregister))",
            "None",
        ),
        M(
            "and takes it back: socket",
            "_register",
            "undo.add(lambda: _unregister('the shared socket', qre.shared_socket_unregister))",
            "None",
        ),
    ),
    "`shared-port-loader-check` verifies fallback, kernel slot and what follows a detach": (
        M("fallback", "_check", "_steered(front, what, head, SLOT_USER)", "None"),
        M("kernel slot", "_steered", "found != slot", "False"),
        M("detach", "_check", "front.maps.detach(front.pair[SLOT_USER].fileno())", "None"),
        M("what follows", "_spread", "not all(counts.values())", "False"),
        M("looks at all", "_check", "_spread(front, b'@' + cid)", "None"),
    ),
    "with Device it checks the shared-port counters of `show`": (
        M("checks", "_compare", "rx != 0 or passed < sent", "False"),
        M("on the device", "_adopt", "qre.cid_adopt(device, cid)", "None"),
        M("what show tells", "_counters", "port_counters(fields.device)", "''"),
        M("or fails", "_compare", "before is None or after is None", "False"),
        M(
            "before anything is set up",
            "shared_port_loader_check",
            "_check_counted(fields.device, qre)",
            "port_counters(fields.device)",
        ),
        M("of a server", "_check_counted", "found.role is not Role.SERVER", "False"),
    ),
    "`shared-port-session-demo` shakes hands on real sockets and installs after the loader registered": (
        M("registers before", "_install_server", "_prove_registered(demo)", "None"),
        M(
            "installs the server's",
            "_install_server",
            "install_end(demo.undo, demo.qre, demo.server, session)",
            "None",
        ),
        M(
            "installs the client's",
            "_both_ends",
            "install_end(demo.undo, demo.qre, demo.client, session, made.fileno())",
            "None",
        ),
    ),
    "`shared-port-handshake-daemon` serves several configurations": (
        M(
            "with connection IDs of RoutedCidLen",
            "_config",
            "GlobalConfig(**{**vars(config), 'routed_cid_len': loading.routed_cid_len})",
            "config",
        ),
        M("several", "_Daemons.start_all", "range(len(self._files))", "range(1)"),
        M("serves", "run_one", "run_daemon(profile, config, options, lambda: load_profile_file(file))", "0"),
        M("ends with its time", "_Daemons.wait", "deadline is None or time.monotonic() < deadline", "True"),
    ),
    "Listen, ServerName, Dest, RealityPrivateKey, RealityMaxTimeDiff must be equal, short ids may not overlap": (
        M("Listen", "_differences", "('Listen', str(ours.listen), str(its.listen))", "('Listen', '', '')"),
        M(
            "ServerName",
            "_differences",
            "('ServerName', ours.server_name.lower(), its.server_name.lower())",
            "('ServerName', '', '')",
        ),
        M("Dest", "_differences", "('Dest', str(ours.dest), str(its.dest))", "('Dest', '', '')"),
        M("short ids of sections", "check_together", "profile.server.accepted_ids", "profile.server.short_ids"),
        M("RealityPrivateKey", "_differences", "ours.private_key != its.private_key", "False"),
        M(
            "RealityMaxTimeDiff",
            "_differences",
            "('RealityMaxTimeDiff', f'{ours.max_time_diff_ms}ms', f'{its.max_time_diff_ms}ms')",
            "('RealityMaxTimeDiff', '', '')",
        ),
        M("short ids", "check_together", "owner is not profile.name", "False"),
        M(
            "daemons that join: ServerName",
            "refusal",
            "('ServerName', own.server_name.lower(), its.server_name.lower())",
            "('ServerName', '', '')",
        ),
        M("daemons that join: Dest", "refusal", "('Dest', own.dest, its.dest)", "('Dest', '', '')"),
        M(
            "daemons that join: RealityMaxTimeDiff",
            "refusal",
            "('RealityMaxTimeDiff', f'{own.max_time_diff_ms} ms', f'{its.max_time_diff_ms} ms')",
            "('RealityMaxTimeDiff', '', '')",
        ),
        M(
            "daemons that join: RealityPrivateKey",
            "Guests.join",
            "self._refuse_another_key(profile, own, its)",
            "None",
        ),
        M("daemons that join: short ids", "Guests.join", "self._refuse_overlap(number, profile, own, its)", "None"),
    ),
    "each handshake's device is chosen by its short id": (
        M("by its short id", "Guests.accept", "hello.found.short_id in guest.short_ids", "True"),
    ),
    "`shared-port-handshake-client` makes one handshake over UDP": (
        M("over UDP", "client_handshake", "await shake_hands(handshake, made, peer, f'{peer[0]}:{peer[1]}')", "None"),
        M(
            "tells what was assigned",
            "_lines",
            "f\"assigned addresses: {', '.join(map(str, handed_over.addresses))}\"",
            "'assigned addresses: '",
        ),
    ),
    "InstallSession=true installs it and adopts the CID": (
        M(
            "installs",
            "shared_port_handshake_client",
            "install_end(undo, qre, profile, session, made.fileno())",
            "None",
        ),
        M("it stays", "shared_port_handshake_client", "undo.keep()", "None"),
    ),
    "BpfElf and Listen are required": (
        M("BpfElf of the loader", "parse_loader_fields", "('BpfElf', 'Listen')", "('Listen',)"),
        M("Listen of the loader", "parse_loader_fields", "('BpfElf', 'Listen')", "('BpfElf',)"),
        M(
            "Listen of the check",
            "parse_check_fields",
            "('BpfElf', 'Listen', 'ConnectionId')",
            "('BpfElf', 'ConnectionId')",
        ),
        M("BpfElf of the demo", "parse_demo_fields", "('BpfElf',)", "()"),
        M("BpfElf of the daemon", "parse_daemon_fields", "('BpfElf',)", "()"),
        M(
            "numeric",
            "_address",
            "_in_field(name, parse_ipv4_socket_address, text)",
            "_in_field(name, parse_ipv4_socket_address, text.replace('localhost', '127.0.0.1'))",
        ),
    ),
    "ConnectionId has the length of RoutedCidLen": (
        M("its length", "parse_check_fields", "len(cid) != loading.routed_cid_len", "False"),
        M("required", "parse_check_fields", "('BpfElf', 'Listen', 'ConnectionId')", "('BpfElf', 'Listen')"),
    ),
    "UserspaceBind is true, and one of it and UserspaceSocketFd is given": (
        M("is true", "_only_true", "text.lower() != 'true'", "False"),
        M("one of them", "parse_loader_fields", "len(given) != 1", "len(given) > 1"),
        M("not both", "parse_loader_fields", "len(given) != 1", "len(given) < 1"),
    ),
    "PinDir is /sys/fs/bpf, RegisterCidMap true, RoutedCidLen the default length unless given": (
        M("PinDir", "PIN_DIR", "'/sys/fs/bpf'", "'/sys/fs/bpf/qre'"),
        M("RegisterCidMap", "_loading", "register is not False", "register is True"),
        M("RoutedCidLen", "_loading", "load_global(os.environ).routed_cid_len or ROUTED_CID_LEN[1]", "17"),
        M("unless given: PinDir", "_loading", "pin_dir or Path(PIN_DIR)", "Path(PIN_DIR)"),
    ),
    "RegisterCidMap=false registers no map; the shared socket is registered all the same": (
        M(
            "the socket all the same",
            "module",
            "try:\n    require_module(load_global(os.environ))\n    made = Qre()\n"
            "except MachineError as error:\n    if not loading.register and not needed:\n        yield None\n        return\n"
            "    remedy = error.remedy if needed else f'{error.remedy}; or give RegisterCidMap=false'\n"
            "    raise MachineError(error.what, error.why, remedy) from error",
            "if not loading.register and not needed:\n    yield None\n    return\nmade = Qre()",
        ),
        M("of the loader", "_loading", "register is not False", "True"),
        M("of the daemon", "run_one", "DaemonOptions(register_cid_map=loading.register)", "DaemonOptions()"),
    ),
    "RoutedCidLen is 17 to 20, RunForMs not 0": (
        M("at least 17", "ROUTED_CID_LENGTHS", "(17, 20)", "(16, 20)"),
        M("at most 20", "ROUTED_CID_LENGTHS", "(17, 20)", "(17, 21)"),
        M("not 0", "_lasting", "_number(name, text, 1, _MAX_U64)", "_number(name, text, 0, _MAX_U64)"),
        M("milliseconds", "_lasting", "run_for_ms / 1000", "run_for_ms"),
    ),
    "ReadyFile is written when the loader is ready": (
        M("of the loader", "stay", "write_ready_file(path, {'listen': str(front.port), 'pins': pins})", "None"),
        M(
            "of the daemon",
            "handshake_daemon",
            "write_ready_file(lasting.ready_file, {'devices': [profile.device for profile in profiles]})",
            "None",
        ),
        M("not over another file", "check_ready_file", "pid is None", "False"),
        M("nor another loader's", "check_ready_file", "os.path.exists(f'/proc/{pid}')", "False"),
        M("but over a killed one's", "check_ready_file", "os.path.exists(f'/proc/{pid}')", "True"),
        M("removed at the end of the loader", "stay", "undo.add(lambda: remove_ready_file(path))", "None"),
        M("removed at the end of the daemon", "handshake_daemon", "remove_ready_file(lasting.ready_file)", "None"),
    ),
    "a field that may be left out has a default": (
        M("help tells of it", "command_help", "default_rows(name)", "{}"),
        M("the manual page, too", "_command", "default_rows(name)", "{}"),
        M("of the loaders", "PIN_DIR", "'/sys/fs/bpf'", "'/sys/fs/bpf/qre'"),
        M("RegisterCidMap", "_loading", "register is not False", "register is True"),
        M("InstallSession", "parse_client_fields", "install or False", "install is not False"),
        M("of watch", "_read", "fields.get('Interval', WATCH_INTERVAL)", "fields.get('Interval', '2')"),
        M("of init", "INIT", "'10.77.0.1/24'", "'10.77.0.9/24'"),
        M("of a capture", "session_capture", "fields.get('KeyLog', 'false')", "fields.get('KeyLog', 'true')"),
        M("of qre.ko", "IDLE_TIMEOUT", "'30s'", "'60s'"),
    ),
    "ServerUnderlay and ClientUnderlay replace the addresses": (
        M("ServerUnderlay", "_peer", "underlay is not None", "False"),
        M(
            "ClientUnderlay",
            "underlay_socket",
            "underlay or parse_socket_address(LOOPBACK.client)",
            "parse_socket_address(LOOPBACK.client)",
        ),
        M(
            "ServerUnderlay of the demo",
            "shared_port_session_demo",
            "fields.server_underlay or only_listen(server)",
            "only_listen(server)",
        ),
        M("ClientUnderlay of the demo", "_both_ends", "demo.fields.client_underlay", "None"),
    ),
    "ServerUnderlay is the server configuration's Listen unless given": (
        M(
            "of session-plan and session-capture",
            "session_ends",
            "f'{ours}:{listen.port}'",
            "f'192.0.2.99:{listen.port}'",
        ),
        M("of the client", "_peer", "profile.client.endpoint.port", "4433"),
        M(
            "of the demo",
            "shared_port_session_demo",
            "fields.server_underlay or only_listen(server)",
            "fields.server_underlay or fields.client_underlay",
        ),
    ),
    "ClientUnderlay is an address for tests unless given": (
        M("an address for tests", "LOOPBACK_CLIENT", "'127.0.0.1:50443'", "'127.0.0.1:50444'"),
        M("of a capture", "PATH_CLIENT", "'198.51.100.7:50443'", "'198.51.100.8:50443'"),
        M("to a server elsewhere", "_socket", "not peer[0].startswith('127.')", "False"),
    ),
    "InstallSession is false unless given": (
        M("false", "parse_client_fields", "install or False", "install is not False"),
    ),
    "fields have kebab-case and snake_case forms": (
        M("kebab-case", "forms_of", "snake.replace('_', '-')", "snake"),
        M(
            "snake_case",
            "forms_of",
            "(name.lower(), snake, snake.replace('_', '-'))",
            "(name.lower(), snake.replace('_', '-'))",
        ),
    ),
}
