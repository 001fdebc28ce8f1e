//! The traffic: prepared SUBSCRIBE, PUBLISH and NOTIFY with their 200s, 650 to 1,100 bytes each, as phones and PBXs write
//! them. Per message only an identifier of 12 digits is written, and what an answer takes from its request is copied.

use memchr::memmem;

/// Slot (4 hex digits) and cycle (8), as they stand in branches, Call-IDs and tags.
pub type Id = [u8; 12];

pub fn id(slot: usize, cycle: u32) -> Id {
    let mut id = [0; 12];
    let mut value = ((slot as u64) << 32) | u64::from(cycle);
    for digit in id.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
    id
}

/// The slot and the cycle of a message, from its Call-ID.
pub fn slot_of(message: &[u8]) -> Option<(usize, u32)> {
    let at = memmem::find(message, b"\r\nCall-ID: ")? + 11;
    let mut value = 0u64;
    for digit in message.get(at..at + 12)? {
        value = value << 4 | u64::from((*digit as char).to_digit(16)?);
    }
    Some(((value >> 32) as usize, value as u32))
}

/// A text with places for an identifier.
struct Template {
    text: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(text: &str) -> Template {
        let text = text.replace('\n', "\r\n").into_bytes();
        let places = memmem::find_iter(&text, b"@@@@@@@@@@@@").collect();
        Template { text, places }
    }

    fn write(&self, id: &Id, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.text);
        for place in &self.places {
            out[start + place..][..12].copy_from_slice(id);
        }
    }
}

/// Everything that the two ends say.
pub struct Script {
    subscribe: Template,
    publish: Template,
    notify: [Template; 2],
    answers: [Template; 3],
}

/// What is asked, in the order of a slot's cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Subscribe,
    Publish,
    Notify,
}

impl Script {
    pub fn new(client: &str, backend: &str) -> Script {
        Script::with(client, backend, str::to_owned)
    }

    fn with(client: &str, backend: &str, change: impl Fn(&str) -> String) -> Script {
        let request = |text: &str, body: &str| {
            let text = change(text).replace("CLIENT", client).replace("BACKEND", backend);
            Template::new(
                &text
                    .replace("LENGTH", &(body.len() + body.matches('\n').count()).to_string())
                    .replace("BODY", body),
            )
        };
        let (publish, notify) = NOTIFY.split_once("ROUTE").expect("the text has its mark");
        let notify = [request(publish, ""), request(notify, DIALOG_INFO)];
        Script {
            subscribe: request(SUBSCRIBE, ""),
            publish: request(PUBLISH, PIDF),
            notify,
            answers: [request(SUBSCRIBED, ""), request(PUBLISHED, ""), request(NOTIFIED, "")],
        }
    }

    /// The same with phones over `tcp` or `tls`, and the PBX over TCP.
    pub fn over(transport: &str, client: &str, backend: &str) -> Script {
        let contact = format!("@CLIENT;transport={transport}");
        Script::with(client, backend, |text| {
            let by = if text.starts_with("NOTIFY ") { "TCP" } else { &transport.to_ascii_uppercase() };
            text.replace("SIP/2.0/UDP", &format!("SIP/2.0/{by}")).replace("@CLIENT", &contact)
        })
    }

    /// Writes a request; `route` is the Route header line of a NOTIFY, or nothing.
    pub fn ask(&self, ask: Ask, id: &Id, route: &[u8], out: &mut Vec<u8>) {
        match ask {
            Ask::Subscribe => self.subscribe.write(id, out),
            Ask::Publish => self.publish.write(id, out),
            Ask::Notify => {
                self.notify[0].write(id, out);
                out.extend_from_slice(route);
                self.notify[1].write(id, out);
            }
        }
    }

    /// Writes the 200 to a request as it was received: its Via and Record-Route lines come first, as they stand.
    pub fn answer(&self, ask: Ask, id: &Id, request: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"SIP/2.0 200 OK\r\n");
        out.extend_from_slice(top(request));
        self.answers[ask as usize].write(id, out);
    }
}

/// The Route line that follows from the Record-Route that a router put into this request.
pub fn learn_route(request: &[u8], route: &mut Vec<u8>) {
    route.clear();
    let top = top(request);
    if let Some(at) = memmem::find(top, b"Record-Route: ") {
        let line = &top[at + b"Record-".len()..];
        route.extend_from_slice(&line[..memchr::memchr(b'\n', line).map_or(line.len(), |end| end + 1)]);
    }
}

/// The Via and Record-Route lines at the top: our requests begin with Via, and routers put theirs above or beside it.
fn top(request: &[u8]) -> &[u8] {
    let start = memchr::memchr(b'\n', request).map_or(request.len(), |end| end + 1);
    let mut rest = &request[start..];
    while rest.starts_with(b"Via: ") || rest.starts_with(b"Record-Route: ") {
        rest = &rest[memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1)..];
    }
    &request[start..request.len() - rest.len()]
}

const SUBSCRIBE: &str = "SUBSCRIBE sip:1042@pbx.example.org SIP/2.0
Via: SIP/2.0/UDP CLIENT;rport;branch=z9hG4bKPjs@@@@@@@@@@@@
Max-Forwards: 70
From: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=a@@@@@@@@@@@@
To: <sip:1042@pbx.example.org>
Call-ID: @@@@@@@@@@@@-4f1c-9d0c-77aa31b2e6d5
CSeq: 23417 SUBSCRIBE
Contact: <sip:1001@CLIENT;ob>;+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000a95a0e128>\"
Event: dialog
Expires: 3600
Accept: application/dialog-info+xml, application/rlmi+xml, multipart/related
Supported: replaces, 100rel, timer, norefersub, eventlist
Allow-Events: presence, message-summary, refer, dialog
Allow: PRACK, INVITE, ACK, BYE, CANCEL, UPDATE, INFO, SUBSCRIBE, NOTIFY, REFER, MESSAGE, OPTIONS
User-Agent: ExamplePhone 7960 v8.12.4
X-Site: building 7, second floor, desk 31
Content-Length: 0

";

const PUBLISH: &str = "PUBLISH sip:1001@pbx.example.org SIP/2.0
Via: SIP/2.0/UDP CLIENT;rport;branch=z9hG4bKPjp@@@@@@@@@@@@
Max-Forwards: 70
From: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=p@@@@@@@@@@@@
To: <sip:1001@pbx.example.org>
Call-ID: @@@@@@@@@@@@-8a2e-4c1b-90de6fa1b3c7
CSeq: 8821 PUBLISH
Contact: <sip:1001@CLIENT;ob>
Event: presence
Expires: 3600
Allow-Events: presence, message-summary, refer, dialog
User-Agent: ExamplePhone 7960 v8.12.4
Content-Type: application/pidf+xml
Content-Length: LENGTH

BODY";

const PIDF: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<presence xmlns=\"urn:ietf:params:xml:ns:pidf\" xmlns:dm=\"urn:ietf:params:xml:ns:pidf:data-model\" entity=\"sip:1001@pbx.example.org\">
 <tuple id=\"t4109\"><status><basic>open</basic></status><contact priority=\"0.8\">sip:1001@pbx.example.org</contact></tuple>
 <dm:person id=\"p1\"><note>On the phone until noon</note></dm:person>
</presence>
";

const NOTIFY: &str = "NOTIFY sip:1001@CLIENT;ob SIP/2.0
Via: SIP/2.0/UDP BACKEND;rport;branch=z9hG4bKPjn@@@@@@@@@@@@
Max-Forwards: 70
ROUTEFrom: <sip:1042@pbx.example.org>;tag=b@@@@@@@@@@@@
To: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=a@@@@@@@@@@@@
Call-ID: @@@@@@@@@@@@-4f1c-9d0c-77aa31b2e6d5
CSeq: 31022 NOTIFY
Contact: <sip:BACKEND>
Event: dialog
Subscription-State: active;expires=3599
Allow-Events: presence, dialog, message-summary
User-Agent: Example PBX 23.4.1
Content-Type: application/dialog-info+xml
Content-Length: LENGTH

BODY";

const DIALOG_INFO: &str = "<?xml version=\"1.0\"?>
<dialog-info xmlns=\"urn:ietf:params:xml:ns:dialog-info\" version=\"7\" state=\"full\" entity=\"sip:1042@pbx.example.org\">
 <dialog id=\"1042\" direction=\"recipient\"><remote><identity>sip:1017@pbx.example.org</identity></remote><state>early</state></dialog>
</dialog-info>
";

const SUBSCRIBED: &str = "From: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=a@@@@@@@@@@@@
To: <sip:1042@pbx.example.org>;tag=b@@@@@@@@@@@@
Call-ID: @@@@@@@@@@@@-4f1c-9d0c-77aa31b2e6d5
CSeq: 23417 SUBSCRIBE
Contact: <sip:BACKEND>
Expires: 3600
Supported: 100rel, timer, replaces, norefersub
Allow-Events: presence, dialog, message-summary
Allow: OPTIONS, REGISTER, SUBSCRIBE, NOTIFY, PUBLISH, INVITE, ACK, BYE, CANCEL, UPDATE, PRACK, INFO, MESSAGE, REFER
Server: Example PBX 23.4.1
Content-Length: 0

";

const PUBLISHED: &str = "From: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=p@@@@@@@@@@@@
To: <sip:1001@pbx.example.org>;tag=q@@@@@@@@@@@@
Call-ID: @@@@@@@@@@@@-8a2e-4c1b-90de6fa1b3c7
CSeq: 8821 PUBLISH
Expires: 3600
SIP-ETag: a@@@@@@@@@@@@
Supported: 100rel, timer, replaces, norefersub
Allow-Events: presence, dialog, message-summary
Allow: OPTIONS, REGISTER, SUBSCRIBE, NOTIFY, PUBLISH, INVITE, ACK, BYE, CANCEL, UPDATE, PRACK, INFO, MESSAGE, REFER
Server: Example PBX 23.4.1
Content-Length: 0

";

const NOTIFIED: &str = "From: <sip:1042@pbx.example.org>;tag=b@@@@@@@@@@@@
To: \"Alice Liddell\" <sip:1001@pbx.example.org>;tag=a@@@@@@@@@@@@
Call-ID: @@@@@@@@@@@@-4f1c-9d0c-77aa31b2e6d5
CSeq: 31022 NOTIFY
Contact: <sip:1001@CLIENT;ob>;+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000a95a0e128>\"
Supported: replaces, 100rel, timer, norefersub, eventlist
Allow: PRACK, INVITE, ACK, BYE, CANCEL, UPDATE, INFO, SUBSCRIBE, NOTIFY, REFER, MESSAGE, OPTIONS
User-Agent: ExamplePhone 7960 v8.12.4
X-Site: building 7, second floor, desk 31
Content-Length: 0

";
