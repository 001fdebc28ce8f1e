//! The state of a dialog and the requests in it (RFC 3261 12), for notifiers and subscribers alike.

use std::net::SocketAddr;

use super::message::{Message, address_of, param, uri_of};

#[derive(Clone, Debug)]
pub struct Dialog {
    call_id: String,
    local_tag: String,
    remote_tag: String,
    /// From and To of our requests, without their tags.
    local: String,
    remote: String,
    cseq: u32,
    remote_cseq: Option<u32>,
    /// Whole Route values, the next hop first.
    routes: Vec<String>,
    /// The peer's Contact URI.
    target: String,
}

impl Dialog {
    /// As the one who answers a request with `tag` (12.1.1): Record-Route in its order.
    pub fn answering(request: &Message, tag: &str) -> Option<Dialog> {
        Some(Dialog {
            call_id: request.call_id().to_owned(),
            local_tag: tag.to_owned(),
            remote_tag: request.from_tag()?.to_owned(),
            local: without_tag(request.field("To")?),
            remote: without_tag(request.field("From")?),
            cseq: 0,
            remote_cseq: Some(request.cseq()?.0),
            routes: owned(request.values("Record-Route")),
            target: request.contact()?.to_owned(),
        })
    }

    /// As the one who sent `request` and got this 2xx (12.1.2): Record-Route from the bottom.
    pub fn asking(request: &Message, response: &Message) -> Option<Dialog> {
        let mut routes = owned(response.values("Record-Route"));
        routes.reverse();
        Some(Dialog {
            call_id: request.call_id().to_owned(),
            local_tag: request.from_tag()?.to_owned(),
            remote_tag: response.to_tag()?.to_owned(),
            local: without_tag(request.field("From")?),
            remote: without_tag(request.field("To")?),
            cseq: request.cseq()?.0,
            remote_cseq: None,
            routes,
            target: response.contact()?.to_owned(),
        })
    }

    /// As the one whose SUBSCRIBE is met by this NOTIFY before its 2xx (RFC 6665 4.4.1).
    pub fn notified(subscribe: &Message, notify: &Message) -> Option<Dialog> {
        let dialog = Dialog::answering(notify, subscribe.from_tag()?)?;
        Some(Dialog { cseq: subscribe.cseq()?.0, ..dialog })
    }

    /// Is this request of this dialog (12.2.2)?
    pub fn owns(&self, request: &Message) -> bool {
        request.call_id() == self.call_id
            && request.to_tag() == Some(&self.local_tag)
            && request.from_tag() == Some(&self.remote_tag)
    }

    /// Takes a request of the dialog: its CSeq and, as a target refresh, its Contact. False where it is out of order,
    /// which is answered with 500 (12.2.2).
    pub fn take(&mut self, request: &Message) -> bool {
        let number = request.cseq().map_or(0, |(number, _)| number);
        if self.remote_cseq.is_some_and(|last| number <= last) {
            return false;
        }
        self.remote_cseq = Some(number);
        self.retarget(request);
        true
    }

    /// A target refresh: a request or a 2xx with Contact (12.2.1.2, 12.2.2).
    pub fn retarget(&mut self, message: &Message) {
        if let Some(contact) = message.contact() {
            contact.clone_into(&mut self.target);
        }
    }

    /// A request in the dialog, and where it goes (12.2.1.1). `None` where that is no IP address.
    pub fn request(&mut self, method: &str) -> Option<(SocketAddr, Message)> {
        self.cseq += 1;
        let mut routes = self.routes.clone();
        let mut uri = self.target.clone();
        let first = routes.first().map(|route| uri_of(route).to_owned());
        if let Some(strict) = first.as_ref().filter(|uri| param(uri, "lr").is_none()) {
            routes.remove(0);
            routes.push(format!("<{uri}>"));
            uri.clone_from(strict);
        }
        let to = address_of(first.as_ref().unwrap_or(&uri))?;
        let mut request = Message::request(method, &uri);
        for route in &routes {
            request = request.with("Route", route);
        }
        let request = request
            .with("From", &format!("{};tag={}", self.local, self.local_tag))
            .with("To", &format!("{};tag={}", self.remote, self.remote_tag))
            .with("Call-ID", &self.call_id)
            .with("CSeq", &format!("{} {method}", self.cseq));
        Some((to, request))
    }
}

fn owned(values: Vec<&str>) -> Vec<String> {
    values.into_iter().map(str::to_owned).collect()
}

/// A From or To as in the requests of the dialog: its URI alone.
fn without_tag(value: &str) -> String {
    format!("<{}>", uri_of(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe() -> Message {
        Message::request("SUBSCRIBE", "sip:1001@x")
            .with("Record-Route", "<sip:127.0.0.1:2;lr>, <sip:127.0.0.1:1;lr>")
            .with("From", "\"W\" <sip:2001@x>;tag=w")
            .with("To", "<sip:1001@x>")
            .with("Call-ID", "c")
            .with("CSeq", "7 SUBSCRIBE")
            .with("Contact", "<sip:2001@127.0.0.1:9>")
    }

    #[test]
    fn rfc3261_12_1_1_and_12_1_2_route_sets_run_opposite_ways() {
        let subscribe = subscribe();
        let mut notifier = Dialog::answering(&subscribe, "n").expect("complete");
        let (to, notify) = notifier.request("NOTIFY").expect("an address");
        assert_eq!(to, "127.0.0.1:2".parse().expect("address"));
        assert_eq!(notify.values("Route"), ["<sip:127.0.0.1:2;lr>", "<sip:127.0.0.1:1;lr>"]);
        assert_eq!(notify.uri(), "sip:2001@127.0.0.1:9");
        let ok = subscribe.reply(200, "OK", "n").with("Contact", "<sip:127.0.0.11:5060>");
        let mut subscriber = Dialog::asking(&subscribe, &ok).expect("complete");
        assert!(subscriber.owns(&notify) && subscriber.take(&notify) && !subscriber.take(&notify));
        let (to, refresh) = subscriber.request("SUBSCRIBE").expect("an address");
        assert_eq!(
            (to.port(), refresh.uri(), refresh.cseq()),
            (1, "sip:127.0.0.11:5060", Some((8, "SUBSCRIBE")))
        );
        assert!(notifier.owns(&refresh) && notifier.take(&refresh));
    }

    #[test]
    fn rfc3261_12_2_1_1_a_strict_router_becomes_the_request_uri() {
        let mut subscribe = subscribe();
        subscribe.set("Record-Route", "<sip:127.0.0.1:2>, <sip:127.0.0.1:1;lr>");
        let (to, notify) =
            Dialog::answering(&subscribe, "n").and_then(|mut d| d.request("NOTIFY")).expect("an address");
        assert_eq!((to.port(), notify.uri()), (2, "sip:127.0.0.1:2"));
        assert_eq!(notify.values("Route"), ["<sip:127.0.0.1:1;lr>", "<sip:2001@127.0.0.1:9>"]);
    }
}
