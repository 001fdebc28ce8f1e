//! The scene of most tests: a router with one listener for phones and one for PBXs, each on its own address, and dialogs
//! through it as a phone and a PBX see them.
//!
//! Network N is 127.40.N.0/24 (`HOUSE`: of some test binaries another than 40): .1 is the listener `phones`, .2 the listener
//! `pbxs`, .11 to .14 are PBXs, .31 and above phones, .99 a host that nobody may be made to send to.

use std::{
    cell::Cell,
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use super::{
    Party, Router, TempDir,
    message::{Request, unique},
    pki, text,
};

/// The key that signs, unless a test says otherwise.
pub const KEY: &str = "{ id = 1, key = \"00112233445566778899aabbccddeeff\" }";

/// How long a socket is listened to where nothing may come, after the router has provably dealt with what was sent.
const HUSH: Duration = Duration::from_millis(20);

/// Settings of a scene.
pub struct Layout {
    net: u8,
    /// Top-level lines, before all sections.
    pub top: String,
    pub keys: String,
    pub router_id: u8,
    /// Name of the phones' listener, and lines of it.
    pub phones: &'static str,
    pub listener: String,
    /// Sections, behind all others.
    pub more: String,
    /// Transports of the phones and of the PBXs.
    pub column: Column,
    pub workers: usize,
    /// The sections have a `[tls]` of their own.
    pub own_tls: bool,
}

/// The second byte of all addresses here. Test binaries run side by side and number their networks by themselves.
pub const HOUSE: u8 = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"websocket" => 43,
    b"protection" => 45,
    _ => 40,
};

/// A column of the matrix: `udp`, `tcp` or `tls` of the phones and of the PBXs; of phones `ws` and `wss` too.
pub type Column = (&'static str, &'static str);

thread_local! {
    static COLUMN: Cell<Column> = const { Cell::new(("udp", "udp")) };
}

/// Runs a test in each column that there is; the scenes that it starts are in that one.
pub fn in_each_column(test: impl Fn()) {
    let pbxs = ["udp", "tcp", "tls"];
    let columns = ["udp", "tcp", "tls", "ws"].into_iter().flat_map(|phones| pbxs.map(|pbxs| (phones, pbxs)));
    for column in columns.chain([("wss", "udp")]) {
        eprintln!("phones over {}, PBXs over {}", column.0, column.1);
        COLUMN.set(column);
        test();
    }
}

impl Layout {
    pub fn new(net: u8) -> Layout {
        Layout {
            net,
            top: String::new(),
            keys: KEY.into(),
            router_id: 0,
            phones: "phones",
            listener: String::new(),
            more: String::new(),
            column: COLUMN.get(),
            workers: 1,
            own_tls: false,
        }
    }

    /// Sections for the end of tidings.toml.
    pub fn more(mut self, more: &str) -> Layout {
        self.more = more.into();
        self
    }

    fn settings(&self) -> String {
        let Layout { net, top, keys, router_id, phones, listener, more, column, workers, .. } = self;
        let (clients, backends) = column;
        format!(
            "{top}\n[workers]\ncount = {workers}\npin = false\n\
             [[listen]]\nname = \"{phones}\"\ntransport = \"{clients}\"\naddress = \"127.{HOUSE}.{net}.1:5060\"\nside = \"clients\"\n{listener}\
             [[listen]]\nname = \"pbxs\"\ntransport = \"{backends}\"\naddress = \"127.{HOUSE}.{net}.2:5060\"\nside = \"backends\"\n\
             [admin]\naddress = \"127.{HOUSE}.{net}.1:9060\"\n\
             [tokens]\nrouter_id = {router_id}\nkeys = [{keys}]\n{more}"
        )
    }

    #[track_caller]
    pub fn start(self, table: &str) -> Scene {
        let table = table.replace(";transport=udp", &format!(";transport={}", self.column.1));
        // Listeners have the certificate of their addresses.
        let pki = TempDir::new("pki");
        let mut settings = self.settings();
        let secure = |transport| matches!(transport, "tls" | "wss");
        if !self.own_tls && (secure(self.column.0) || secure(self.column.1)) {
            settings += &certificates(
                &pki,
                &[&format!("127.{HOUSE}.{}.1", self.net), &format!("127.{HOUSE}.{}.2", self.net)],
            );
        }
        let router = Router::start(&settings, &table);
        Scene { router, net: self.net, column: self.column, pki }
    }
}

/// A `[tls]` section: a certificate for these names by the tests' authority, which signs those of backends too.
pub fn certificates(dir: &TempDir, names: &[&str]) -> String {
    let (certificate, key) = pki::authority().issue(names).write(dir, "router");
    let ca = dir.write("ca.pem", &pki::authority().pem());
    format!("[tls]\ncertificate = {certificate:?}\nprivate_key = {key:?}\nbackend_ca = {ca:?}\n")
}

/// A pool of PBXs of network `net` by their numbers: pbx1 is .11.
pub fn pool(name: &str, net: u8, pbxs: &[u8]) -> String {
    let mut pool = format!("[[pool]]\nname = \"{name}\"\nprobe = \"off\"\n");
    for n in pbxs {
        let host = 10 + n;
        pool += &format!(
            "[[pool.backend]]\nname = \"pbx{n}\"\nuri = \"sip:127.{HOUSE}.{net}.{host}:5060;transport=udp\"\n"
        );
    }
    pool
}

/// A rule: `matches` is the inside of `match = {}`, `action` its other lines.
pub fn rule(name: &str, matches: &str, action: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\nmatch = {{ {matches} }}\n{action}\n")
}

/// Phones to the one PBX, that PBX to phones by their flow.
pub fn one_pbx(net: u8) -> String {
    pool("one", net, &[1])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("to the pbx", "source = \"clients\"", "route = \"one\"\npath = true")
}

/// Subscriptions of phones to pbx1, all else of theirs to pbx2.
pub fn split(net: u8) -> String {
    pool("lamps", net, &[1])
        + &pool("calls", net, &[2])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("lamps", "source = \"clients\", method = [\"SUBSCRIBE\"]", "route = \"lamps\"")
        + &rule("calls", "source = \"clients\"", "route = \"calls\"\npath = true")
}

/// A running router and its network.
pub struct Scene {
    pub router: Router,
    pub net: u8,
    pub column: Column,
    /// Files of certificates, where its column has TLS.
    pub pki: TempDir,
}

impl Scene {
    #[track_caller]
    pub fn start(net: u8, table: &str) -> Scene {
        Layout::new(net).start(table)
    }

    /// Address `host` of this network, port 5060.
    pub fn at(&self, host: u8) -> SocketAddr {
        SocketAddr::from(([127, HOUSE, self.net, host], 5060))
    }

    /// The listener for phones.
    pub fn phones(&self) -> SocketAddr {
        self.at(1)
    }

    /// The listener for PBXs.
    pub fn pbxs(&self) -> SocketAddr {
        self.at(2)
    }

    /// A party at `.host:5060`.
    #[track_caller]
    pub fn party(&self, host: u8) -> Party {
        self.bind(self.at(host))
    }

    /// A party at any address: .11 to .14 and .64 to .79 are on the PBXs' side, all others phones.
    #[track_caller]
    pub fn bind(&self, address: impl ToSocketAddrs + std::fmt::Debug) -> Party {
        let at = address.to_socket_addrs().expect("an address of the test's").next();
        let SocketAddr::V4(at) = at.expect("an address of the test's") else { panic!("scenes are IPv4") };
        let pbx = matches!(at.ip().octets()[3], 11..=14 | 64..80);
        match if pbx { self.column.1 } else { self.column.0 } {
            "tcp" => Party::bind_tcp(SocketAddr::V4(at)),
            "tls" => Party::bind_tls(SocketAddr::V4(at)),
            "ws" => Party::bind_websocket(SocketAddr::V4(at), false),
            "wss" => Party::bind_websocket(SocketAddr::V4(at), true),
            _ => Party::bind(SocketAddr::V4(at)),
        }
    }

    /// PBX `n`.
    #[track_caller]
    pub fn pbx(&self, n: u8) -> Party {
        self.party(10 + n)
    }

    /// A phone at .31.
    #[track_caller]
    pub fn phone(&self) -> Party {
        self.party(31)
    }

    /// Nothing is on its way to any of these: the router has dealt with all that was sent to it before.
    #[track_caller]
    pub fn quiet(&self, parties: &[&Party]) {
        self.settle();
        for party in parties {
            party.expect_nothing(HUSH);
        }
    }

    /// Waits until the router has dealt with all that was sent before: its one worker reads what is ready on both
    /// sockets in one turn, so that the second answer comes a whole turn later. A client is answered on both sides.
    #[track_caller]
    pub fn settle(&self) {
        let bind = |transport: &str, host| match transport {
            "tcp" => Party::bind_tcp(SocketAddr::from(([127, HOUSE, self.net, host], 5060))),
            "tls" => Party::bind_tls(SocketAddr::from(([127, HOUSE, self.net, host], 5060))),
            "ws" | "wss" => {
                let at = SocketAddr::from(([127, HOUSE, self.net, host], 5060));
                Party::bind_websocket(at, transport == "wss")
            }
            _ => Party::bind(SocketAddr::from(([127, HOUSE, self.net, host], 5060))),
        };
        let (clients, backends) = (bind(self.column.0, 250), bind(self.column.1, 251));
        for _ in 0..2 {
            for (from, listener) in [(&clients, self.phones()), (&backends, self.pbxs())] {
                from.send(listener, Request::new("OPTIONS", &format!("sip:{listener}"), from).text());
                from.expect("SIP/2.0 ");
            }
        }
    }

    /// How often a message was refused or dropped for this cause.
    #[track_caller]
    pub fn refused(&self, cause: &str) -> f64 {
        self.router.metrics().sum("tidings_refused_total", &[("cause", cause)])
    }

    /// A client's REGISTER with one Contact, its 200 by `pbx`; what the PBX and the phone got.
    #[track_caller]
    pub fn register(&self, phone: &Party, pbx: &Party, user: &str, contact: &str) -> (String, String) {
        let request = Request::new("REGISTER", "sip:example.com", phone)
            .with("To", format!("<sip:{user}@example.com>"))
            .with("From", format!("<sip:{user}@example.com>;tag={}", unique()))
            .with("Contact", contact)
            .with("Expires", "600");
        phone.send(self.phones(), request.text());
        let got = pbx.expect("REGISTER ");
        let path: String =
            text::headers(&got, "Path").iter().map(|path| format!("Path: {path}\r\n")).collect();
        let more = format!("{path}Contact: {contact};expires=600\r\n");
        pbx.answer(self.pbxs(), &got, "200 OK", &unique(), &more);
        (got, phone.expect("SIP/2.0 200"))
    }
}

/// A dialog that went through the router, as both ends see it.
pub struct Dialog {
    pub call_id: String,
    pub caller_tag: String,
    pub callee_tag: String,
    /// Route values for the requests of each end.
    pub caller_routes: Vec<String>,
    pub callee_routes: Vec<String>,
    /// Contacts: the R-URIs of requests to each end.
    pub caller_uri: String,
    pub callee_uri: String,
    /// The request as the callee got it, and its 2xx as the caller got it.
    pub request: String,
    pub response: String,
}

impl Dialog {
    /// Sends `request` to `entry`; `callee` answers 200.
    #[track_caller]
    pub fn open(caller: &Party, entry: SocketAddr, callee: &Party, request: &Request) -> Dialog {
        caller.send(entry, request.text());
        let got = callee.expect(&format!("{} ", request.method));
        let back = via_address(&got);
        let contact = format!("Contact: <sip:{}>\r\nExpires: 600\r\n", callee.address);
        callee.answer(back, &got, "200 OK", &unique(), &contact);
        Dialog::of(got, caller.expect("SIP/2.0 200"))
    }

    /// A phone's SUBSCRIBE to `pbx`.
    #[track_caller]
    pub fn subscribe(scene: &Scene, phone: &Party, pbx: &Party) -> Dialog {
        let request = Request::new("SUBSCRIBE", "sip:1000@example.com", phone);
        Dialog::open(phone, scene.phones(), pbx, &request)
    }

    /// From the request as the callee got it and the 2xx as the caller got it.
    #[track_caller]
    pub fn of(request: String, response: String) -> Dialog {
        let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let mut caller_routes = owned(text::headers(&response, "Record-Route"));
        caller_routes.reverse();
        let tag = |name| text::tag(text::header(&response, name)).expect("both ends have a tag").to_owned();
        Dialog {
            call_id: text::header(&response, "Call-ID").to_owned(),
            caller_tag: tag("From"),
            callee_tag: tag("To"),
            caller_routes,
            callee_routes: owned(text::headers(&request, "Record-Route")),
            caller_uri: text::uri(text::header(&request, "Contact")).to_owned(),
            callee_uri: text::uri(text::header(&response, "Contact")).to_owned(),
            request,
            response,
        }
    }

    /// A request within the dialog, by the caller's route set.
    pub fn by_caller(&self, method: &str, caller: &Party) -> Request {
        let tags = (&self.caller_tag, &self.callee_tag);
        self.inside(method, caller, &self.callee_uri, tags).routes(&self.caller_routes)
    }

    /// A request within the dialog, by the callee's route set.
    pub fn by_callee(&self, method: &str, callee: &Party) -> Request {
        let tags = (&self.callee_tag, &self.caller_tag);
        self.inside(method, callee, &self.caller_uri, tags).routes(&self.callee_routes)
    }

    /// A request within the dialog, without Routes.
    pub fn inside(&self, method: &str, from: &Party, uri: &str, tags: (&String, &String)) -> Request {
        Request::new(method, uri, from)
            .with("Call-ID", &self.call_id)
            .with("From", format!("<sip:here@example.com>;tag={}", tags.0))
            .with("To", format!("<sip:there@example.com>;tag={}", tags.1))
            .with("CSeq", format!("2 {method}"))
    }
}

/// Where the request's first Route leads.
#[track_caller]
pub fn first_route(request: &Request) -> SocketAddr {
    uri_address(request.value("Route"))
}

/// Host and port of a name-addr's URI, both numeric.
#[track_caller]
pub fn uri_address(value: &str) -> SocketAddr {
    let uri = text::uri(value).trim_start_matches("sip:").trim_start_matches("sips:");
    let host = uri.rsplit_once('@').map_or(uri, |(_, host)| host);
    let host = host.split(';').next().unwrap_or(host);
    let port = if host.ends_with(']') || !host.contains(':') { ":5060" } else { "" };
    format!("{host}{port}").parse().unwrap_or_else(|_| panic!("no address in {value}"))
}

/// User part of a name-addr's URI: the token in a Record-Route or Path of ours.
#[track_caller]
pub fn user(value: &str) -> &str {
    let uri = text::uri(value).trim_start_matches("sip:").trim_start_matches("sips:");
    uri.split_once('@').unwrap_or_else(|| panic!("no user in {value}")).0
}

/// sent-by of the top Via: the listener of ours by which a message came.
#[track_caller]
pub fn via_address(message: &str) -> SocketAddr {
    let via = text::header(message, "Via").trim_start_matches("SIP/2.0/");
    let via = via.split_once(' ').map_or(via, |(_, sent_by)| sent_by);
    let sent_by = via.split(';').next().unwrap_or(via);
    sent_by.parse().unwrap_or_else(|_| panic!("no address in {via}"))
}

/// The branch of the top Via.
#[track_caller]
pub fn branch(message: &str) -> &str {
    parameter(text::header(message, "Via"), "branch").unwrap_or_else(|| panic!("no branch in:\n{message}"))
}

/// A parameter's value.
pub fn parameter<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(';').skip(1).find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
}
