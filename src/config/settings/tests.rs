//! Settings: Appendix A as it stands, every setting, and every fault with its place.

use std::path::Path;

use super::*;
use crate::config::Diagnostic;

fn parse(text: &str) -> Result<Settings, Vec<Diagnostic>> {
    Settings::parse("tidings.toml", text, Path::new("/etc/tidings"))
}

fn good(text: &str) -> Settings {
    parse(text).unwrap_or_else(|faults| {
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}", shown.join("\n"))
    })
}

/// `line:column: message` of each fault.
fn faults(text: &str) -> Vec<String> {
    let faults = parse(text).expect_err("this has faults");
    faults.iter().map(|fault| format!("{}:{}: {}", fault.line, fault.column, fault.message)).collect()
}

/// SPEC, Appendix A, to the letter.
const APPENDIX_A: &str = r#"# tidings.toml
table = "table.toml"                 # relative to this file

[workers]
count = 1                            # default: one per core
pin = true

[[listen]]
name = "phones"                      # for rules; default: transport and port
transport = "udp"                    # udp | tcp | tls | ws | wss
address = "127.0.0.1:5060"
side = "both"                        # clients | backends | both
# advertise = "sip.example.com:5060" # what Via and Record-Route name, where it differs

[admin]
address = "127.0.0.1:9060"           # /metrics /healthz /readyz / /api/v1/…
"#;

#[test]
fn appendix_a_parses_as_it_stands() {
    let settings = good(APPENDIX_A);
    assert_eq!(settings.table.as_deref(), Some(Path::new("/etc/tidings/table.toml")));
    assert_eq!((settings.workers.count, settings.workers.pin), (1, true));
    let [listen] = &settings.listen[..] else { panic!("one listener") };
    assert_eq!((listen.name.as_str(), listen.side, listen.transport), ("phones", Side::Both, Transport::Udp));
    assert_eq!(listen.address, SocketAddr::from(([127, 0, 0, 1], 5060)));
    assert_eq!(listen.advertise, None);
    assert_eq!(settings.admin.address, Some(SocketAddr::from(([127, 0, 0, 1], 9060))));
    assert!(warnings(&settings).is_empty());
    let advertised = APPENDIX_A.replace("# advertise", "advertise");
    assert_eq!(good(&advertised).listen[0].advertise, Some(("sip.example.com".into(), 5060)));
}

#[test]
fn health_has_its_limits() {
    let Health { probes, silence, busy_sources, busy_window, longest_pause } = good(
        "[health]\nprobes = 8\nsilence = \"500ms\"\nbusy_sources = 1\nbusy_window = \"1m\"\nlongest_pause = \"30s\"\n",
    )
    .health;
    let seconds = [busy_window, longest_pause].map(|time| time.as_secs());
    assert_eq!((probes, silence.as_millis(), busy_sources, seconds), (8, 500, 1, [60, 30]));
    assert_eq!(
        faults("[health]\nprobes = 0\nsilence = \"99ms\"\nbusy_sources = 9\nbusy_window = 3\nprobs = 1\n"),
        [
            "2:10: probes: \"0\" is not between 1 and 10000",
            "3:11: silence: less than 100 ms",
            "4:16: busy_sources: \"9\" is not between 1 and 8",
            "5:15: busy_window: expected a time such as \"30s\", \"500ms\" or \"5m\", found an integer",
            "6:1: unknown key \"probs\" in [health], did you mean \"probes\"?",
        ]
    );
}

#[test]
fn an_empty_file_is_the_defaults() {
    let settings = good("");
    assert_eq!(settings.listen.len(), 1);
    assert_eq!(settings.listen[0].name, "udp-5060");
    assert_eq!(settings.listen[0].address, SocketAddr::from(([0, 0, 0, 0], 5060)));
    assert!(settings.workers.count >= 1 && settings.table.is_none());
    assert_eq!((settings.limits.pins, settings.limits.series), (262_144, 1_000));
    assert_eq!(settings.timers.grace, Duration::from_secs(30));
    assert_eq!(settings.udp.receive_buffer, 8 << 20);
}

#[test]
fn every_setting_is_read() {
    let settings = good(
        r#"
        table = "/srv/table.toml"
        state_dir = "/var/lib/tidings"
        aliases = ["sip.example.com", "example.com:5070", "2001:db8::7"]
        workers = { count = 3, pin = false }
        [[listen]]
        address = "[2001:db8::1]"
        side = "clients"
        advertise = "edge.example.com"
        [[listen]]
        name = "inside"
        address = "10.0.0.1:5070"
        side = "backends"
        [trust]
        prefixes = ["10.0.0.0/8", "192.0.2.7"]
        strip = ["P-Asserted-Identity"]
        [tokens]
        router_id = 7
        keys = [{ id = 3, key = "000102030405060708090a0b0c0d0eFF" }, { id = 2, key = "00000000000000000000000000000001" }]
        [limits]
        message = "32KiB"
        header_lines = 100
        start_line = 4096
        pins = 1024
        flows = 10
        moved_flows = 11
        unreachable = 12
        departed = 14
        series = 13
        [timers]
        grace = "500ms"
        [udp]
        receive_buffer = "4MiB"
        send_buffer = 65536
        [dns]
        servers = ["192.0.2.53", "[2001:db8::53]:5353"]
        timeout = "2s"
        wait = "500ms"
        ttl_min = "1s"
        ttl_max = "10m"
        retry_max = "1m"
        avoid = "5s"
        addresses = 8
        prefixes = ["10.0.0.0/8"]
        [admin]
        address = "192.0.2.1:9060"
        token = "0123456789abcdef"
        hosts = ["edge.example.com"]
        connections = 16
        request_time = "30s"
        [log]
        format = "json"
        level = "info,tidings::net=debug"
        "#,
    );
    assert_eq!(settings.table.as_deref(), Some(Path::new("/srv/table.toml")));
    assert_eq!(settings.listen[0].name, "udp-5060");
    assert_eq!(settings.listen[0].advertise, Some(("edge.example.com".into(), 5060)));
    assert_eq!(settings.listen[1].side, Side::Backends);
    assert_eq!(settings.trust.prefixes.len(), 2);
    assert_eq!(settings.tokens.router_id, 7);
    assert_eq!(settings.tokens.keys[0], (3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]));
    assert_eq!((settings.limits.wire.message, settings.limits.wire.start_line), (32 << 10, 4096));
    let limits = &settings.limits;
    assert_eq!(
        (limits.pins, limits.flows, limits.moved_flows, limits.unreachable, limits.series, limits.departed),
        (1024, 10, 11, 12, 13, 14)
    );
    let dns = &settings.dns;
    assert_eq!(
        dns.servers,
        ["192.0.2.53:53", "[2001:db8::53]:5353"].map(|text| text.parse().expect("address"))
    );
    let times = [dns.timeout, dns.wait, dns.ttl_min, dns.ttl_max, dns.retry_max, dns.avoid];
    assert_eq!(times.map(|time| time.as_millis()), [2_000, 500, 1_000, 600_000, 60_000, 5_000]);
    assert_eq!((dns.addresses, dns.prefixes.len()), (8, 1));
    assert_eq!(settings.timers.grace, Duration::from_millis(500));
    assert_eq!((settings.udp.receive_buffer, settings.udp.send_buffer), (4 << 20, 65_536));
    let admin = &settings.admin;
    assert_eq!(admin.token.as_deref(), Some("0123456789abcdef"));
    assert_eq!(admin.hosts, ["edge.example.com"]);
    assert_eq!((admin.connections, admin.request_time), (16, Duration::from_secs(30)));
    assert!(settings.log.json && settings.log.level == "info,tidings::net=debug");
}

#[test]
fn all_faults_come_at_once_in_order() {
    assert_eq!(
        faults(
            r#"tabel = "x"
workers = { count = 0, pins = true }
[[listen]]
name = "a"
transport = "quic"
address = "127.0.0.1:5061"
[[listen]]
address = "sip.example.com:5060"
sides = "both"
[[listen]]
name = "no address"
[timers]
grace = "30"
[limits]
message = "64 bytes"
[log]
level = "loud"
"#
        ),
        [
            "1:1: unknown key \"tabel\" in tidings.toml, did you mean \"table\"?",
            "2:21: count: \"0\" is not between 1 and 1024",
            "2:24: unknown key \"pins\" in [workers], did you mean \"pin\"?",
            "5:13: unknown transport \"quic\"",
            "8:11: \"sip.example.com:5060\" is not an IP address with a port, such as \"192.0.2.1:5060\" or \
             \"[2001:db8::1]:5060\"",
            "9:1: unknown key \"sides\" in [[listen]], did you mean \"side\"?",
            "10:1: this listener has no address: address = \"192.0.2.1:5060\"",
            "13:9: grace: \"30\" is not a time such as \"30s\", \"500ms\" or \"5m\"",
            "15:11: message: \"64 bytes\" is not a size such as \"64KiB\", \"8MiB\" or 65536",
            "17:9: unknown log level \"loud\" (error, warn, info, debug, trace, off; or directives such as \
             \"info,tidings::net=debug\")",
        ]
    );
}

#[test]
fn dns_settings_that_cannot_be() {
    assert_eq!(
        faults(
            "[dns]\nservers = [\"dns.example.com\"]\nttl_min = \"2m\"\nttl_max = \"1m\"\nprefixes = [\"ten\"]\n"
        ),
        [
            "1:1: ttl_min is at least 1 s, and ttl_max no less than it",
            "2:12: \"dns.example.com\" is not the address of a DNS server, such as \"192.0.2.53\" or \"127.0.0.1:5353\"",
            "5:13: \"ten\" is not an address or prefix such as \"192.0.2.0/24\"",
        ]
    );
}

#[test]
fn how_connections_begin() {
    let settings = good(
        "[[listen]]\ntransport = \"ws\"\naddress = \"10.0.0.1:80\"\npath = \"/ws\"\n\
         origins = [\"https://Phone.example.com\", \"http://10.0.0.8:8080\"]\nproxy_protocol = [\"10.0.0.9\", \"10.1.0.0/16\"]\n\
         [[listen]]\ntransport = \"tcp\"\naddress = \"10.0.0.1:5060\"\n",
    );
    let [ws, tcp] = &settings.listen[..] else { panic!("{:?}", settings.listen) };
    let rules = ws.websocket.as_ref().expect("it is one");
    assert_eq!(rules.path.as_deref(), Some("/ws"));
    let origins = ["https://phone.example.com", "http://10.0.0.8:8080"].map(String::from).to_vec();
    assert_eq!(rules.origins, Some(origins));
    assert_eq!(ws.proxies.len(), 2);
    assert!(tcp.websocket.is_none() && tcp.proxies.is_empty());
    assert_eq!(
        faults(
            "[[listen]]\naddress = \"10.0.0.1:5060\"\npath = \"/ws\"\nproxy_protocol = [\"10.0.0.9\"]\n\
             [[listen]]\ntransport = \"ws\"\naddress = \"10.0.0.1:80\"\npath = \"ws?x\"\n\
             origins = [\"phone.example.com\", \"https://a.example/\", \"*\", \"https://*.example\"]\n\
             proxy_protocol = [\"0.0.0.0/0\", \"haproxy\"]\n\
             [[listen]]\ntransport = \"tcp\"\naddress = \"10.0.0.1:80\"\n"
        ),
        [
            "3:1: transport udp has no path, only ws and wss have",
            "4:1: transport udp has no PROXY protocol, only tcp, tls, ws and wss have",
            "8:8: \"ws?x\" is no path such as \"/ws\", without a query",
            "9:12: \"phone.example.com\" is no origin as browsers say it, such as \"https://phone.example.com\" or \
             \"https://phone.example.com:8443\", without a path",
            "9:33: \"https://a.example/\" is no origin as browsers say it, such as \"https://phone.example.com\" or \
             \"https://phone.example.com:8443\", without a path",
            "9:55: \"*\" is no origin as browsers say it, such as \"https://phone.example.com\" or \
             \"https://phone.example.com:8443\", without a path",
            "9:60: \"https://*.example\" is no origin as browsers say it, such as \"https://phone.example.com\" or \
             \"https://phone.example.com:8443\", without a path",
            "10:19: with this anybody could say that he is anybody, a backend too",
            "10:32: \"haproxy\" is not an address or prefix such as \"192.0.2.0/24\"",
            "11:1: 10.0.0.1:80 is already listened on, by the listener of line 5",
        ]
    );
}

#[test]
fn listeners_are_told_apart() {
    let faults = faults(
        "[[listen]]\nname = \"a\"\naddress = \"10.0.0.1:5060\"\n[[listen]]\nname = \"a\"\naddress = \"10.0.0.1:5060\"\n",
    );
    assert_eq!(
        faults,
        [
            "4:1: listener \"a\" is already there, in line 1; name them apart",
            "4:1: 10.0.0.1:5060 is already listened on, by the listener of line 1",
        ]
    );
}

#[test]
fn two_names_with_one_listener_id_are_refused() {
    let mut seen = std::collections::HashMap::new();
    let (first, second) = (0..100_000)
        .find_map(|number| {
            let name = format!("listener-{number}");
            seen.insert(listener_id(&name), name.clone()).map(|other| (other, name))
        })
        .expect("65,537 names cannot have 65,536 ids");
    let faults = faults(&format!(
        "[[listen]]\nname = \"{first}\"\naddress = \"10.0.0.1:5060\"\n[[listen]]\nname = \"{second}\"\naddress = \"10.0.0.1:5061\"\n"
    ));
    let expected = format!(
        "4:1: the names \"{first}\" and \"{second}\" give one listener id, by which tokens know them: rename one"
    );
    assert_eq!(faults, [expected]);
}

#[test]
fn listener_ids_never_change() {
    let ids = ["phones", "udp-5060", "inside"].map(listener_id);
    assert_eq!(ids, LISTENER_IDS);
}

/// Route sets of living dialogs hold these.
const LISTENER_IDS: [u16; 3] = [19_527, 58_021, 33_461];

#[test]
fn what_belongs_elsewhere_or_comes_later_says_so() {
    assert_eq!(
        faults(
            "[[pool]]\nname = \"x\"\n[cluster]\npeers = []\n[[listen]]\naddress = \"10.0.0.1\"\nbackend_ports = \"5070-5080\"\n"
        ),
        [
            "1:3: \"pool\" belongs into the routing table, another file: name it here by table = \"table.toml\"",
            "3:2: \"cluster\" is not in this version yet: routers do not know each other so far; leave the section out",
            "7:1: \"backend_ports\" is not in this version yet: all traffic to backends leaves by the listener's own port",
        ]
    );
}

#[test]
fn admin_elsewhere_than_loopback_needs_a_token() {
    let faults_of = |section: &str| faults(&format!("[admin]\n{section}"));
    assert_eq!(
        faults_of("address = \"192.0.2.1:9060\""),
        ["2:11: the admin address 192.0.2.1 is not loopback: it needs a token (token = \"…\")"]
    );
    assert_eq!(
        faults_of("address = \"0.0.0.0:9060\"\ntoken = \"short\""),
        ["3:9: token: at least 16 characters of printable ASCII without blanks"]
    );
    assert_eq!(
        faults_of("connections = 513\nrequest_time = \"500ms\"\nhosts = [\"a.example:80\"]"),
        [
            "2:15: connections: \"513\" is not between 1 and 512",
            "3:16: request_time: less than 1 s",
            "4:10: \"a.example:80\" is no host name without a port"
        ]
    );
    assert_eq!(good("[admin]\naddress = \"off\"").admin.address, None);
    assert!(good("[admin]\naddress = \"[::1]:9060\"").admin.token.is_none());
}

#[test]
fn tokens_and_trust_that_cannot_be() {
    let key = "00112233445566778899aabbccddeeff";
    assert_eq!(
        faults(&format!(
            "[tokens]\nkeys = [{{ id = 1, key = \"{key}\" }}, {{ id = 1, key = \"{key}\" }}, {{ id = 16, key = \"x\" }}, {{ id = 4 }}]\n\
             key_file = \"keys\"\n[trust]\nprefixes = [\"10.0.0.0/8\", \"0.0.0.0/0\", \"x\"]\nstrip = [\"Via\", \"X-A\", \"o\"]\n"
        )),
        [
            "2:1: give either keys or key_file, not both: only one key can sign",
            "2:63: key id 1 stands here twice",
            "2:124: id: \"16\" is not between 0 and 15",
            "2:134: key: expected 32 hexadecimal digits (128 bits)",
            "2:141: a token key is { id = 0, key = \"32 hexadecimal digits\" }",
            "5:27: this trusts every sender, and no header would be stripped from anybody",
            "5:40: \"x\" is not an address or prefix such as \"192.0.2.0/24\"",
            "6:10: the header \"Via\" cannot be stripped: requests of clients need it",
            "6:24: the header \"o\" (event) cannot be stripped: requests of clients need it",
        ]
    );
}

#[test]
fn key_files() {
    let key = "00112233445566778899aabbccddeeff";
    let ring = parse_ring("keys", &format!("# newest first\n3 {key}\n\n2  {key}\n")).expect("a sound file");
    assert_eq!(ring.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2]);
    for (text, why) in [
        (String::new(), "no key"),
        (format!("16 {key}"), "0 to 15"),
        (format!("1 {key}\n1 {key}"), "twice"),
        ("1 abcd".to_owned(), "32 hexadecimal"),
        (format!("1 {key} x"), "32 hexadecimal"),
    ] {
        let faults = parse_ring("keys", &text).expect_err(why);
        let shown = faults[0].to_string();
        assert!(shown.contains(why) && !shown.contains("0011"), "{shown}");
    }
}

#[test]
fn forged_sources_are_warned_of_on_public_addresses() {
    let listen = |address: &str, side: &str| {
        let text = format!("[[listen]]\naddress = \"{address}\"\nside = \"{side}\"\n");
        warnings(&good(&text)).len()
    };
    for (address, side, expected) in [
        ("127.0.0.1:5060", "both", 0),
        ("10.1.2.3:5060", "backends", 0),
        ("[fd00::1]:5060", "both", 0),
        ("100.64.0.1:5060", "both", 0),
        ("198.51.100.1:5060", "both", 1),
        ("198.51.100.1:5060", "backends", 1),
        ("198.51.100.1:5060", "clients", 0),
        ("[2001:db8::1]:5060", "both", 1),
        ("0.0.0.0:5060", "both", 1),
    ] {
        assert_eq!(listen(address, side), expected, "{address} {side}");
    }
    let shown = warnings(&good("\n[[listen]]\naddress = \"198.51.100.1:5060\"\n"))[0].to_string();
    assert!(shown.starts_with("tidings.toml:2:1: warning: listener \"udp-5060\""), "{shown}");
}

#[test]
fn units() {
    use super::units::{duration, host_port, size, socket_address};
    for (text, expected) in
        [("30s", 30_000), ("500ms", 500), ("5m", 300_000), ("12h", 43_200_000), ("1d", 86_400_000)]
    {
        assert_eq!(duration(text), Some(Duration::from_millis(expected)), "{text}");
    }
    for text in ["", "30", "s", "-1s", "1.5s", "30x", "99999999999999999999s", "18446744073709551615d"] {
        assert_eq!(duration(text), None, "{text}");
    }
    assert_eq!(
        (size("64KiB"), size("1 MiB"), size("2kB"), size("7")),
        (Some(65_536), Some(1 << 20), Some(2000), Some(7))
    );
    assert_eq!((size("64K"), size(""), size("18446744073709551615GiB")), (None, None, None));
    assert_eq!(socket_address("[::1]", 5060), "[::1]:5060".parse().ok());
    assert_eq!(socket_address("::1", 5060), "[::1]:5060".parse().ok());
    for (text, expected) in [
        ("Example.COM", Some(("example.com", None))),
        ("example.com.:5070", Some(("example.com", Some(5070)))),
        ("[2001:DB8::1]:5060", Some(("2001:db8::1", Some(5060)))),
        ("192.0.2.1", Some(("192.0.2.1", None))),
        ("[::1]", Some(("::1", None))),
        ("::1", Some(("::1", None))),
        ("[::1", None),
        ("[example.com]", None),
        ("example.com:+1", None),
        ("300.1.2.3", None),
        ("a b", None),
        ("example.com:0", None),
        ("example.com:70000", None),
        ("", None),
        ("-", None),
    ] {
        let expected = expected.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(host_port(text), expected, "{text}");
    }
}

#[test]
fn tls_settings_that_cannot_be() {
    assert_eq!(
        faults(
            r#"[[listen]]
name = "bare"
transport = "tls"
address = "127.0.0.1:5061"
[[listen]]
transport = "udp"
address = "127.0.0.1:5062"
client_ca = "ca.pem"
[[listen]]
transport = "tls"
address = "127.0.0.1:5063"
certificate = "a.pem"
[[listen]]
transport = "tls"
address = "127.0.0.1:5064"
certificates = [{ certificate = "a.pem", private_key = "a.key" }, { private_key = "b.key" }, { key = "c" }]
client_certificates = "requird"
[[listen]]
transport = "tls"
address = "127.0.0.1:5065"
certificates = [{ certificate = "a.pem", private_key = "a.key" }]
client_certificates = "optional"
[tls]
backend_certificate = "b.pem"
ca = "x"
[connections]
handshake_time = "10ms"
handshakes = 0
"#
        ),
        [
            "1:1: this listener has no certificate: certificate = \"sip.pem\" and private_key = \"sip.key\", here or in [tls]",
            "8:1: transport udp has no certificates, only tls and wss have",
            "9:1: this listener has no certificate: certificate = \"sip.pem\" and private_key = \"sip.key\", here or in [tls]",
            "12:15: certificate without private_key",
            "16:83: private_key without certificate",
            "16:96: unknown key \"key\" in certificates",
            "17:23: unknown client_certificates \"requird\", did you mean \"required\"? (off, optional, required)",
            "22:23: client_certificates: client_ca = \"ca.pem\" must say who signs them",
            "24:23: backend_certificate without backend_private_key",
            "25:1: unknown key \"ca\" in [tls]",
            "27:18: handshake_time: less than 1 s",
            "28:14: handshakes: \"0\" is not between 1 and 16777216",
        ]
    );
}

#[test]
fn a_listener_has_its_own_certificates_or_those_of_all() {
    let text = r#"
[[listen]]
name = "own"
transport = "tls"
address = "127.0.0.1:5061"
certificate = "own.pem"
private_key = "own.key"
client_certificates = "off"
[[listen]]
name = "plain"
transport = "tcp"
address = "127.0.0.1:5060"
[[listen]]
name = "general"
transport = "tls"
address = "127.0.0.1:5062"
[tls]
certificate = "a.pem"
private_key = "a.key"
certificates = [{ certificate = "b.pem", private_key = "b.key" }]
client_ca = "/etc/ca.pem"
"#;
    let settings = Settings::parse("t.toml", text, Path::new("/base")).expect("sound");
    let tls = |at: usize| settings.listen[at].tls.as_ref();
    let shown = |at| {
        let paths =
            tls(at).expect("TLS").certificates.iter().map(|pair| pair.certificate.path.display().to_string());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(shown(0), ["/base/own.pem"]);
    assert_eq!(shown(2), ["/base/a.pem", "/base/b.pem"]);
    assert!(tls(1).is_none());
    let asked = |at| tls(at).expect("TLS").client_certificates;
    use super::tls::ClientCertificates::{Off, Required};
    assert_eq!((asked(0), asked(2)), (Off, Required), "who names an authority wants its certificates");
}

/// routing/tidings.toml: where people look every setting up.
mod every_setting {
    use super::*;

    const FILE: &str = include_str!("../../../routing/tidings.toml");

    #[test]
    fn what_is_not_commented_is_the_default() {
        let (written, default) = (good(FILE), Settings::default());
        let same = |name: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "[{name}]");
        };
        same("workers", &written.workers, &default.workers);
        same("trust", &written.trust, &default.trust);
        same("tokens", &written.tokens, &default.tokens);
        same("limits", &written.limits, &default.limits);
        same("timers", &written.timers, &default.timers);
        same("health", &written.health, &default.health);
        same("udp", &written.udp, &default.udp);
        same("dns", &written.dns, &default.dns);
        same("connections", &written.connections, &default.connections);
        same("tls", &written.tls, &default.tls);
        same("flow_events", &written.flow_events, &default.flow_events);
        same("keepalive", &written.keepalive, &default.keepalive);
        same("protection", &written.protection, &default.protection);
        same("admin", &written.admin, &default.admin);
        same("log", &written.log, &default.log);
        same("listen", &written.listen, &default.listen);
    }

    #[test]
    fn what_is_commented_can_be_written() {
        let (before, listener) = FILE.split_once("# [[listen]]\n").expect("a listener");
        let (_, behind) = listener.split_once("\n\n").expect("what follows it");
        // Of keys and key_file one is given.
        let lines = before.lines().chain(behind.lines()).filter(|line| !line.starts_with("# key_file"));
        let is_key = |line: &str| {
            line.split_once(" = ")
                .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        };
        let written = lines.map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
        good(&written.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn every_key_stands_there() {
        let sections: [(&str, &[&str]); 17] = [
            ("\n[workers]\n", &["count", "pin"]),
            ("\n# [[listen]]\n", &listen::LISTEN),
            ("\n[trust]\n", &["prefixes", "strip"]),
            ("\n[tokens]\n", &["router_id", "keys", "key_file"]),
            ("\n[limits]\n", &limits::LIMITS),
            ("\n[timers]\n", &["grace"]),
            ("\n[health]\n", &limits::HEALTH),
            ("\n[udp]\n", &["receive_buffer", "send_buffer"]),
            ("\n[dns]\n", &dns::KEYS),
            ("\n[connections]\n", &limits::CONNECTIONS),
            ("\n[tls]\n", &tls::KEYS),
            ("\n[flow_events]\n", &flow_events::KEYS),
            ("\n[keepalive]\n", &["method", "interval", "rate"]),
            ("\n[protection]\n", &protection::KEYS),
            ("\n[admin]\n", &read::ADMIN),
            ("\n[log]\n", &["format", "level"]),
            ("Relative paths", &["table", "state_dir", "aliases"]),
        ];
        for (begin, keys) in sections {
            let (_, section) = FILE.split_once(begin).unwrap_or_else(|| panic!("no {begin}"));
            let section = section.split("\n[").next().unwrap_or_default();
            for key in keys {
                let stands = section
                    .lines()
                    .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                assert!(stands, "{key} in {begin}");
            }
        }
        // What is not there is not there yet.
        let named = |section: &&str| {
            FILE.contains(&format!("[{section}]")) || FILE.contains(&format!("# {section} = "))
        };
        let missing: Vec<&str> = SECTIONS.into_iter().filter(|section| !named(section)).collect();
        assert_eq!(missing, ["cluster"]);
    }
}
