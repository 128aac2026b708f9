"""Changes for the rows of sessions, BPF maps and the shared socket; plans and captures."""

from __future__ import annotations

from tests.mutants.change import Mutant as M

_ASKS_KERNEL = "from qre.kernel.qre_family import Qre\nQre().close()"

MUTANTS = {
    "`install-session` and `update-session` take the same fields": (
        M("install", "install_session", "qre.session_install_request(device, fields.request)", "None"),
        M("update", "update_session", "qre.session_update_request(device, fields.request)", "None"),
        M("a field is sent", "parse_session_fields", "request.put(attribute, value)", "None"),
        M("KeyEpoch is sent", "parse_session_fields", "request.u64(Attribute.KEY_EPOCH, key_epoch)", "None"),
        M(
            "PacketNumber is sent",
            "parse_session_fields",
            "request.u64(Attribute.PACKET_NUMBER, max(packet_number, PACKET_NUMBER_BASE))",
            "None",
        ),
        M("an address is sent", "parse_session_fields", "request.put(attribute, address.packed)", "None"),
        M("a port is sent", "parse_session_fields", "request.port(attribute, port)", "None"),
        M("the ConnectionId is sent", "parse_session_fields", "request.put(Attribute.CID, cid)", "None"),
        M("under its own attribute", "_FIXED", "(Attribute.RX_HP_KEY, KEY_SIZE)", "(Attribute.TX_HP_KEY, KEY_SIZE)"),
        M("nothing is ignored", "update_session", "_check_unchanged(found.status, described.role, fields)", "None"),
    ),
    "`update-session` gives a session in the kernel its next keys: installed by hand on both ends, it carries packets"
    " before and after": (
        M("the next keys", "PlannedEnd.install", "advance(self._handed_over, key_epoch)", "self._handed_over"),
        M("gives them", "update_session", "qre.session_update_request(device, fields.request)", "None"),
    ),
    "`PacketNumber` is the current packet number": (
        M("raised", "parse_session_fields", "max(packet_number, PACKET_NUMBER_BASE)", "packet_number"),
        M("the answer says so", "_tell_raised", "given < least", "False"),
        M("of an update, too", "update_session", "max(reached, PACKET_NUMBER_BASE)", "PACKET_NUMBER_BASE"),
    ),
    "an installed session stays until it is deleted": (
        M("as the field says", "parse_session_fields", "request.u64(Attribute.IDLE_MS, idle_ms)", "None"),
        M(
            "the answer says so",
            "_life",
            "f'it ends when its peer sends nothing for {idle} (IdleTimeout)'",
            "''",
        ),
    ),
    "the ConnectionId is adopted on success": (
        M("adopted by the kernel", "qre_session_publish", "qre_cid_link(cid, qdev, s);", "kfree(cid);"),
        M(
            "of an install that is repeated, too",
            "install_session",
            "qre.cid_adopt(device, fields.connection_id, fields.session_id)",
            "None",
        ),
        M("of an update, too", "update_session", "_adopt_further(undo, qre, device, fields)", "None"),
        M(
            "on success only",
            "_adopt_further",
            "undo.add(lambda: unless_gone(lambda: qre.cid_release(device, fields.connection_id, fields.session_id)))",
            "None",
        ),
    ),
    "every field has the length that the reference gives it, required ones are required": (
        M(
            "SessionId",
            "_FIXED",
            "(Attribute.SESSION_ID, SESSION_ID_SIZE)",
            "(Attribute.SESSION_ID, SESSION_ID_SIZE + 1)",
        ),
        M("TxKey", "_FIXED", "(Attribute.TX_KEY, KEY_SIZE)", "(Attribute.TX_KEY, KEY_SIZE + 1)"),
        M("RxKey", "_FIXED", "(Attribute.RX_KEY, KEY_SIZE)", "(Attribute.RX_KEY, KEY_SIZE + 1)"),
        M("TxHpKey", "_FIXED", "(Attribute.TX_HP_KEY, KEY_SIZE)", "(Attribute.TX_HP_KEY, KEY_SIZE + 1)"),
        M("RxHpKey", "_FIXED", "(Attribute.RX_HP_KEY, KEY_SIZE)", "(Attribute.RX_HP_KEY, KEY_SIZE + 1)"),
        M("TxIv", "_FIXED", "(Attribute.TX_IV, IV_SIZE)", "(Attribute.TX_IV, IV_SIZE + 1)"),
        M("RxIv", "_FIXED", "(Attribute.RX_IV, IV_SIZE)", "(Attribute.RX_IV, IV_SIZE + 1)"),
        M("any length", "fixed", "len(value) != size", "False"),
        M("ConnectionId: an even number of digits", "_hex", "len(text) % 2", "False"),
        M("ConnectionId: at most 20 bytes", "connection_id", "len(value) > CID_MAX", "False"),
        M("KeyEpoch and PacketNumber are u64", "_number", "int(text) <= _MAX_U64", "True"),
        M(
            "required",
            "REQUIRED",
            "('SessionId', 'ConnectionId', 'TxKey', 'RxKey', 'TxHpKey', 'RxHpKey', 'TxIv', 'RxIv', 'KeyEpoch', 'PacketNumber')",
            "('SessionId', 'ConnectionId', 'TxKey', 'RxKey', 'TxHpKey', 'RxHpKey', 'TxIv', 'RxIv', 'KeyEpoch')",
        ),
    ),
    "`NextRxKey`, `NextRxHpKey`, `NextRxIv` are the keys that it receives with next; they may be left out": (
        M("NextRxKey", "_FIXED", "(Attribute.NEXT_RX_KEY, KEY_SIZE)", "(Attribute.NEXT_TX_KEY, KEY_SIZE)"),
        M("NextRxHpKey", "_FIXED", "(Attribute.NEXT_RX_HP_KEY, KEY_SIZE)", "(Attribute.TX_HP_KEY, KEY_SIZE)"),
        M("NextRxIv", "_FIXED", "(Attribute.NEXT_RX_IV, IV_SIZE)", "(Attribute.NEXT_TX_IV, IV_SIZE)"),
        M(
            "may be left out",
            "OPTIONAL",
            "('NextRxKey', 'NextRxHpKey', 'NextRxIv', 'NextTxKey', 'NextTxIv', *_UNDERLAY, *_IPV6_ADDRESSES, 'ClientConnectionId', 'AllowedIPs', 'IdleTimeout', 'PersistentKeepalive', 'SocketFd')",
            "('NextRxHpKey', 'NextRxIv', 'NextTxKey', 'NextTxIv', *_UNDERLAY, 'ClientConnectionId', 'AllowedIPs', 'SocketFd')",
        ),
        M("key and IV together", "_GROUPS", "('NextRxKey', 'NextRxIv')", "('NextRxKey',)"),
        M("NextRxHpKey is RxHpKey", "_changed_header_key", "octets['NextRxHpKey'] != octets['RxHpKey']", "False"),
        M("NextRxHpKey not alone", "_incomplete", "'NextRxHpKey' in fields and 'NextRxKey' not in fields", "False"),
    ),
    "any underlay field wants all four, ports are not zero": (
        M(
            "all four",
            "_incomplete",
            "(underlay, *_GROUPS)",
            "_GROUPS",
        ),
        M(
            "each of them",
            "_UNDERLAY",
            "('UnderlayLocalIPv4', 'UnderlayLocalPort', 'UnderlayPeerIPv4', 'UnderlayPeerPort')",
            "('UnderlayLocalIPv4', 'UnderlayLocalPort', 'UnderlayPeerIPv4')",
        ),
        M("not zero", "_port", "1 <= int(text) <= 65535", "0 <= int(text) <= 65535"),
    ),
    "names have kebab-case and snake_case forms": (
        M("kebab-case", "forms_of", "snake.replace('_', '-')", "snake"),
        M(
            "snake_case",
            "forms_of",
            "(name.lower(), snake, snake.replace('_', '-'))",
            "(name.lower(), snake.replace('_', '-'))",
        ),
        M(
            "tx-hp-key",
            "snake_case",
            "index and letter.isupper() and (not name[index - 1].isupper())",
            "index and letter.isupper() and not name[index - 1].isupper() and parts[0] != 't'",
        ),
    ),
    "`adopt-cid` and `release-cid` change the device's table": (
        M("adopt", "adopt_cid", "qre.cid_adopt(device, cid, session_id)", "None"),
        M("release", "release_cid", "qre.cid_release(device, cid, session_id)", "None"),
        M("whose it is", "adopt_cid", "qre.cid_adopt(device, cid, session_id)", "qre.cid_adopt(device, cid)"),
    ),
    "`create-cid-map` makes and pins a hash map: key 21 bytes, value u32, 4096 entries": (
        M("a hash map", "CID_ROUTES", "_MAP_TYPE_HASH", "2"),
        M("key of 21 bytes", "CID_ROUTES", "KEY_SIZE", "KEY_SIZE + 3"),
        M("value u32", "CID_ROUTES", "VALUE_SIZE", "8"),
        M("4096 entries", "MAX_ROUTES", "4096", "2048"),
        M("pins", "_create", "pin_at(path, fd)", "None"),
        M("its name", "CID_ROUTES", "'QRE_CID_ROUTES'", "'QRE_ROUTES'"),
    ),
    "`create-reuseport-socket-map` makes and pins a REUSEPORT_SOCKARRAY of two slots": (
        M("a REUSEPORT_SOCKARRAY", "SOCKETS", "_MAP_TYPE_REUSEPORT_SOCKARRAY", "2"),
        M("two slots", "SLOTS", "2", "3"),
        M("pins", "_create", "pin_at(path, fd)", "None"),
        M("its name", "SOCKETS", "'QRE_SOCKETS'", "'QRE_SOCKS'"),
    ),
    "slot 0 is user space's socket, slot 1 the kernel's; the loader fills them": (
        M("which is which", "SLOT_USER", "SLOT_USER, SLOT_KERNEL = 0, 1", "SLOT_USER, SLOT_KERNEL = 1, 0"),
        M("the program: slot 1 is the kernel's", "QRE_SLOT_KERNEL", "1", "0"),
        M(
            "fills slot 0",
            "Maps.slot_in",
            "slotted(self.sockets).get(slot) == socket_cookie(fd)",
            "slot == SLOT_USER",
        ),
        M(
            "fills slot 1",
            "Maps.slot_in",
            "slotted(self.sockets).get(slot) == socket_cookie(fd)",
            "slot == SLOT_KERNEL",
        ),
    ),
    "`register-cid-map` by path and by descriptor; adopted and future CIDs are mirrored": (
        M("by path", "open_map", "(str(path), open_pinned(path))", "(str(path), os.open('/dev/null', os.O_RDONLY))"),
        M("by descriptor", "_descriptor", "os.dup(int(text))", "os.open('/dev/null', os.O_RDONLY)"),
        M("registers", "register_cid_map", "qre.cid_map_register(fd)", "None"),
        M(
            "adopted ones",
            "qre_cidmap_register",
            "list_for_each_entry(entry, &qn->cids, entry) qre_cidmap_add(qn, entry);",
            "",
        ),
        M("the slot", "QRE_KERNEL_SLOT", "1", "0"),
        M("a map of this shape only", "register_cid_map", "check_shape(fd, CID_ROUTES, f'map {source}')", "None"),
    ),
    "`unregister-cid-map` ends it": (
        M("asks the kernel", "unregister_cid_map", "qre.cid_map_unregister()", "None"),
        M(
            "the entries go",
            "qre_cidmap_release",
            "list_for_each_entry(entry, &qn->cids, entry) qre_cidmap_del(qn, entry);",
            "",
        ),
        M(
            "nothing is mirrored any more",
            "qre_cidmap_release",
            "bpf_map_put(qn->map.map); qn->map = (struct qre_cidmap){};",
            "",
        ),
    ),
    "`show-cid-map` lists the entries, each with connection_id and socket_index, as text and JSON": (
        M(
            "text: connection_id",
            "show_cid_map",
            "f'  connection_id {cid.hex()}  socket_index {slot}\\n'",
            "f'  connection_id {cid.hex()[:8]}  socket_index {slot}\\n'",
        ),
        M(
            "text: socket_index",
            "show_cid_map",
            "f'  connection_id {cid.hex()}  socket_index {slot}\\n'",
            "f'  connection_id {cid.hex()}  socket_index 1\\n'",
        ),
        M(
            "text: how many",
            "show_cid_map",
            "print(f'{CID_ROUTES.name} {source}: {len(found)} of {MAX_ROUTES} entries')",
            "None",
        ),
        M(
            "JSON",
            "show_cid_map",
            "[{'connection_id': cid.hex(), 'socket_index': slot} for cid, slot in found]",
            "[{'connection_id': cid.hex(), 'socket_index': 1} for cid, slot in found]",
        ),
        M("all of them", "show_cid_map", "sorted(routes(fd).items())", "sorted(routes(fd).items())[:1]"),
        M("by descriptor", "_descriptor", "os.dup(int(text))", "os.open('/dev/null', os.O_RDONLY)"),
    ),
    "`register-shared-socket`: the kernel checks namespace, family, type": (
        M("registers", "register_shared_socket", "qre.shared_socket_register(fd)", "None"),
        M("namespace", "qre_socket_by_fd", "!net_eq(sock_net(sock->sk), qn->net)", "false"),
        M("family", "qre_socket_by_fd", "&& sock->sk->sk_family != AF_INET6", ""),
        M("type", "qre_socket_by_fd", "sock->type != SOCK_DGRAM ||", ""),
        M("bound", "qre_socket_by_fd", "!inet_sk(sock->sk)->inet_num", "false"),
    ),
    "`unregister-shared-socket` lets go of it": (
        M("asks the kernel", "unregister_shared_socket", "qre.shared_socket_unregister()", "None"),
        M("lets go", "qre_shared_unregister", "qre_socket_unused(qs);", ""),
    ),
    "`session-plan` prints both ends' install-session arguments and touches no kernel": (
        M("touches no kernel", "session_plan", "del options", _ASKS_KERNEL),
        M(
            "the server's",
            "planned_ends",
            "PlannedEnd(server, Role.SERVER, plan.server, here, there)",
            "PlannedEnd(client, Role.CLIENT, plan.client, there, here)",
        ),
        M(
            "the client's",
            "planned_ends",
            "PlannedEnd(client, Role.CLIENT, plan.client, there, here)",
            "PlannedEnd(server, Role.SERVER, plan.server, here, there)",
        ),
        M(
            "install-session takes them",
            "install_arguments",
            "install.session_id.hex()",
            "install.session_id.hex()[:62]",
        ),
        M("keys fit", "install_arguments", "keys.tx_key.hex()", "keys.rx_key.hex()"),
    ),
    "the underlays of `session-plan` are those given, both or none": (
        M("the server's", "session_ends", "ends[0] or at", "at"),
        M(
            "the client's",
            "session_ends",
            "ends[1] or parse_ipv4_socket_address(stand_ins.client)",
            "parse_ipv4_socket_address(stand_ins.client)",
        ),
        M("of a machine", "_parse_end", "address.ip in (_ANY, _ANY_IPV6)", "False"),
        M("both or none", "check_both_or_none", "len([name for name in UNDERLAYS if name in fields]) == 1", "False"),
    ),
    "the underlays of `session-capture` are those given, both or none": (
        M("the server's", "session_ends", "ends[0] or at", "at"),
        M(
            "the client's",
            "session_ends",
            "ends[1] or parse_ipv4_socket_address(stand_ins.client)",
            "parse_ipv4_socket_address(stand_ins.client)",
        ),
        M("both or none", "session_capture", "check_both_or_none('session-capture', fields)", "None"),
    ),
    "what `session-plan` prints, `install-session` takes": (
        M("of every address", "session_ends", "ip is None or ip == _ANY", "ip is None"),
        M("its fields", "install_arguments", "install.idle_timeout_ms", "install.idle_timeout_ms * 60"),
    ),
    "`session-demo` installs both ends": (
        M(
            "both",
            "session_demo",
            "for end in ends:\n    install_end(undo, qre, end.profile, end.install())",
            "for end in ends[:1]:\n    install_end(undo, qre, end.profile, end.install())",
        ),
        M("they stay", "session_demo", "undo.keep()", "None"),
    ),
    "the underlays of `session-demo` are those given, both or none": (
        M(
            "those given",
            "session_demo",
            "planned_ends(server, client, underlays)",
            "planned_ends(server, client, {})",
        ),
        M("the server's", "session_ends", "ends[0] or at", "at"),
        M(
            "the client's",
            "session_ends",
            "ends[1] or parse_ipv4_socket_address(stand_ins.client)",
            "parse_ipv4_socket_address(stand_ins.client)",
        ),
        M("both or none", "check_both_or_none", "len([name for name in UNDERLAYS if name in fields]) == 1", "False"),
        M("none: a server of every address", "LOOPBACK_SERVER_IP", "'127.0.0.1'", "'127.0.0.2'"),
        M("none: a client for tests", "LOOPBACK_CLIENT", "'127.0.0.1:50443'", "'127.0.0.1:50444'"),
    ),
    "`session-capture` writes a raw IPv4 UDP capture, touches no netlink and loads no qre.ko": (
        M("touches no netlink", "session_capture", "del options", _ASKS_KERNEL),
        M(
            "loads no qre.ko",
            "session_capture",
            "del options",
            "from qre.device.kernel_module import load_module\nload_module()",
        ),
        M("raw IPv4", "_LINKTYPE_RAW", "101", "1"),
        M("pcap", "session_capture", "target.suffix.lower() == _WITH_COMMENT", "True"),
        M("pcapng on request", "session_capture", "target.suffix.lower() == _WITH_COMMENT", "False"),
        M("its note in the output", "session_capture", "not with_comment", "False"),
        M("of any earlier capture", "_target", "found.startswith(begins)", "found == begins[0]"),
        M(
            "UDP ports",
            "_packet",
            "dpkt.udp.UDP(sport=source.port, dport=destination.port, data=each.data)",
            "dpkt.udp.UDP(sport=source.port, dport=443, data=each.data)",
        ),
        M("addresses", "_packet", "source.ip.packed", "b'\\x01\\x02\\x03\\x04'"),
        M("time goes on", "_spaced", "max(at + _SPACING, each.time)", "each.time"),
    ),
    "`valid-client`, also `valid`: the handshake is completed": (
        M("valid", "_ALIASES", "{'valid': VALID}", "{}"),
        M(
            "completed",
            "_capture",
            "_spaced(sorted(found, key=lambda each: each.time))",
            "_spaced(sorted(found, key=lambda each: each.time)[:3])",
        ),
    ),
    "`invalid-short-id`, `wrong-sni`, `malformed-initial`, `random-udp` are refused": (
        M("invalid-short-id", "flight", "short_id = random.randbytes(SHORT_ID_LENGTH)", "break"),
        M("wrong-sni", "flight", "f'www.{name}' if len(name) < 200 else name.partition('.')[2]", "name"),
        M("malformed-initial", "flight", "_damaged(each.data, random)", "each.data"),
        M("random-udp", "flight", "stranger is Stranger.RANDOM_UDP", "False"),
    ),
    "it fails when a valid client is refused or an invalid one accepted": (
        M(
            "a valid one that is refused",
            "_capture",
            "raise MachineError('session-capture', why, 'compare both files') from error",
            "return []",
        ),
        M(
            "an invalid one that is accepted",
            "is_taken_for_ours",
            "isinstance(inspector.verdict, Authenticated)",
            "False",
        ),
        M("and is told", "_capture", "is_taken_for_ours(server.server, sent, now)", "False"),
    ),
}
