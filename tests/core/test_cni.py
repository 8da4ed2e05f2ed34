"""Networks as configuration lists: what is read, asked and answered."""

import json

import pytest

from nsupervisor.core import cni

LIST = {"cniVersion": "1.0.0", "name": "blue", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}


def test_the_network_without_a_file_is_sound() -> None:
    network = cni.default_network()
    assert network.types == ("bridge", "portmap", "firewall", "bandwidth", "host-local")
    assert network.has_capability("portMappings")
    assert (network.enables_forwarding, network.masquerades) == ("bridge", True)


def test_a_list_is_parsed() -> None:
    network = cni.parse_network(json.dumps(LIST), "blue")
    assert (network.name, network.version, network.types) == ("blue", "1.0.0", ("bridge", "host-local"))
    assert (network.enables_forwarding, network.masquerades) == ("", False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "red"}, 'its "name" is \'red\'; write "blue"'),
        ({"cniVersion": "0.2.0"}, "its \"cniVersion\" is '0.2.0'; write one of 0.4.0, 1.0.0, 1.1.0"),
        ({"plugins": []}, "it has 0 plugins; write 1 to 16"),
        ({"plugins": {}}, 'it has no list "plugins"'),
        ({"plugins": [{"type": "../../bin/sh"}]}, 'a plugin has no "type", the name of its program'),
        ({"plugins": [{"type": "bridge", "ipam": {"type": "/bin/sh"}}]}, '"ipam" of bridge has no "type"'),
        ({"plugins": [{"type": "a", "capabilities": []}]}, '"capabilities" of a is not an object'),
    ],
)
def test_what_is_wrong_with_a_list_is_named(change: dict, text: str) -> None:
    with pytest.raises(cni.NetworkError) as caught:
        cni.parse_network(json.dumps({**LIST, **change}), "blue")
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "3", "null"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(cni.NetworkError):
        cni.parse_network(text, "blue")


def test_a_plugin_gets_the_runtime_values_that_it_has_the_capability_for() -> None:
    network = cni.default_network()
    runtime = {"portMappings": cni.port_mappings([("127.0.0.1", 8080, 80, "tcp"), ("", 53, 53, "udp")])}
    bridge, portmap = (json.loads(cni.request(network, plugin, runtime, {"ips": []})) for plugin in network.plugins[:2])
    assert "runtimeConfig" not in bridge
    assert "capabilities" not in portmap
    assert portmap["runtimeConfig"]["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
    ]
    assert (portmap["name"], portmap["cniVersion"], portmap["prevResult"]) == ("default", "1.0.0", {"ips": []})


def test_addresses_of_a_result() -> None:
    assert cni.addresses({"ips": [{"address": "10.1.2.3/24"}, {"address": "fd00::2/64"}]}) == ["10.1.2.3", "fd00::2"]
    assert cni.addresses(None) == cni.addresses({"ips": ["x", {}]}) == []


@pytest.mark.parametrize(
    ("output", "errors", "text"),
    [
        (b'{"code": 11, "msg": "no address", "details": "full"}', b"", "no address: full"),
        (b"", b"a\nlast line\n", "last line"),
        (b"", b"", "exit status 3"),
        (b'{"msg": "a\\u001b[31mb\\n"}', b"", "a [31mb "),
        (b"[" * 100_000, b"x", "x"),
    ],
)
def test_why_a_plugin_failed(output: bytes, errors: bytes, text: str) -> None:
    assert cni.error_text(output, errors, 3) == text


def test_rules_that_plugins_leave() -> None:
    """As `bridge` of version 1.1.1 made them for the network "nwtest" and the id "web-1"."""
    chain = cni.masquerade_chain("nwtest", "web-1")
    assert chain == "CNI-af9dcbeaa5bd8664b684f8c6"
    jump = f'-A POSTROUTING -s 10.88.7.2/32 -m comment --comment "name: \\"nwtest\\" id: \\"web-1\\"" -j {chain}'
    other = "-A POSTROUTING -s 10.88.7.3/32 -j CNI-0123"
    rules = f"-P POSTROUTING ACCEPT\n-N {chain}\n{jump}\n{other}\n-A {chain} -d 10.88.7.0/24 -j ACCEPT\n"
    first, *rest = cni.masquerade_deletions(rules, chain)
    comment = 'name: "nwtest" id: "web-1"'
    assert first == ["-D", "POSTROUTING", "-s", "10.88.7.2/32", "-m", "comment", "--comment", comment, "-j", chain]
    assert rest == [["-F", chain], ["-X", chain]]
    assert cni.masquerade_deletions(other, chain) == []
    unbalanced = '-A INPUT -m comment --comment "a quote'
    assert cni.masquerade_deletions(f"{unbalanced}\n{rules}", chain) == [first, *rest]


@pytest.mark.parametrize(
    ("limit", "rate", "burst"),
    [(1 << 10, 1 << 13, 64 << 13), (10 << 20, 80 << 20, (80 << 20) // 10), (1 << 40, 1 << 43, (1 << 31) - 1)],
)
def test_a_bandwidth_is_in_bits_and_has_a_burst(limit: int, rate: int, burst: int) -> None:
    expected = {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}
    assert cni.bandwidth(limit) == expected


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ({"type": "portmap"}, "portmap"),
        ({"type": "portmap", "backend": "nftables"}, ""),
        ({"type": "firewall", "backend": "iptables"}, "firewall"),
        ({"type": "firewall", "backend": "firewalld"}, ""),
        ({"type": "bridge", "ipMasq": True}, "bridge"),
        ({"type": "bridge", "ipMasq": True, "ipMasqBackend": "nftables"}, ""),
        ({"type": "bridge"}, ""),
    ],
)
def test_a_plugin_that_needs_iptables(plugin: dict, expected: str) -> None:
    text = json.dumps({"cniVersion": "1.0.0", "name": "a", "plugins": [plugin]})
    assert cni.parse_network(text, "a").needs_iptables == expected
