//! The Route header fields of a request: strict-route repair, our own values popped, their tokens read (SPEC 3.4, 4.1, 4.4;
//! RFC 3261 16.4).

use smallvec::SmallVec;

use super::setup::Setup;
use crate::wire::{
    Essentials, HeaderId, Method, NameAddr, Reason, Span, Uri, View,
    inspect::check_request_uri,
    token::{Fault, PathToken, RouteToken},
};

/// What the Routes of one request say.
pub struct Routes<'a> {
    /// The Request-URI; after strict-route repair the last Route's.
    pub ruri: &'a [u8],
    received: &'a Uri<'a>,
    /// The last Route, where it became the Request-URI.
    repaired: Option<Uri<'a>>,
    /// There is one Route, ours as we write it.
    single: bool,
    /// How many leading Route values are ours.
    pub popped: usize,
    /// The Request-URI, the first Route that is not ours or a Route that is has the scheme sips: the next hop must have TLS.
    pub secure: bool,
    /// The first Route value that is not ours: its URI.
    pub next: Option<&'a [u8]>,
    /// The tokens that count, in order.
    pub tokens: Tokens,
}

/// The tokens that count (SPEC 3.4).
pub enum Tokens {
    None,
    /// With the key ids that they were signed under. Never empty.
    Route(SmallVec<[(RouteToken, u8); 2]>),
    /// `ob`: the Path asked for a failed flow to be told (RFC 5626 5.3).
    Path {
        token: PathToken,
        key_id: u8,
        ob: bool,
    },
    /// A dead route: an unknown key. `path`: by a path token, with its `ob`.
    Unknown {
        path: Option<bool>,
    },
    Forged {
        path: bool,
    },
}

/// Methods that live in dialogs (SPEC 3.4): an rr token counts in these only.
fn in_dialogs(method: Method) -> bool {
    !matches!(method, Method::Register | Method::Publish | Method::Other)
}

/// Is this the user of a Request-URI that is our Route and no user of ours: none, or a token?
fn own_or_bare(user: Option<&[u8]>, setup: &Setup, essentials: &Essentials<'_>) -> bool {
    user.is_none_or(|user| RouteToken::decode(user, &setup.ring, essentials.call_id) != Err(Fault::Foreign))
}

/// One Route value of ours.
struct Own<'a> {
    user: Option<&'a [u8]>,
    ob: bool,
}

impl<'a> Routes<'a> {
    /// Of a request without any.
    pub fn none(view: &View<'a>, uri: &'a Uri<'a>) -> Routes<'a> {
        Routes {
            ruri: view.ruri(),
            secure: uri.is_sips(),
            received: uri,
            repaired: None,
            single: false,
            popped: 0,
            next: None,
            tokens: Tokens::None,
        }
    }

    /// The Request-URI by its parts; after strict-route repair the last Route's.
    pub fn uri(&self) -> &Uri<'a> {
        self.repaired.as_ref().unwrap_or(self.received)
    }

    /// The last Route became the Request-URI.
    pub fn repaired(&self) -> bool {
        self.repaired.is_some()
    }

    /// Reads the Routes, in place: all this is long to move. `trusted`: the request is from a backend or a trusted source.
    pub fn read(
        &mut self,
        view: &View<'a>,
        essentials: &Essentials<'a>,
        method: Method,
        setup: &Setup,
        local: std::net::SocketAddr,
        trusted: bool,
    ) -> Result<(), Reason> {
        let Some(first) = view.value(HeaderId::Route) else { return Ok(()) };
        let us = |uri: &Uri<'_>| uri.is_sip() && setup.names.is_us(uri.host.host, uri.port(), local);
        let mut reader = TokenReader { setup, essentials, method, trusted, first: true, stopped: false };

        // Nearly all: nothing is to be repaired where the last Route is ours.
        if !view.is_repeated(HeaderId::Route)
            && let Some(user) = setup.own_route(first)
        {
            (self.single, self.popped) = (true, 1);
            self.secure |= first.starts_with(b"<sips:");
            reader.read(&Own { user: Some(user), ob: false }, &mut self.tokens);
            return Ok(());
        }
        if us(self.received) && own_or_bare(self.received.user, setup, essentials) {
            let last = view.items(HeaderId::Route).last().ok_or(Reason::BadRoute)?;
            let addr = NameAddr::parse(last.value).ok_or(Reason::BadRoute)?;
            let target = Uri::parse(addr.uri).ok_or(Reason::BadRoute)?;
            if target.param(b"lr").is_none() && !us(&target) {
                check_request_uri(&target)?;
                // A strict router (or a user agent that makes one of us) sent it: we were the Request-URI.
                let own = Own { user: self.received.user, ob: false };
                self.secure |= target.is_sips();
                (self.ruri, self.repaired) = (addr.uri, Some(target));
                reader.read(&own, &mut self.tokens);
            }
        }
        let mut items = view.items(HeaderId::Route).peekable();
        while let Some(item) = items.next() {
            if self.repaired() && items.peek().is_none() {
                break;
            }
            if let Some(user) = setup.own_route(item.value) {
                self.popped += 1;
                self.secure |= item.value.starts_with(b"<sips:");
                reader.read(&Own { user: Some(user), ob: false }, &mut self.tokens);
                continue;
            }
            let addr = NameAddr::parse(item.value).ok_or(Reason::BadRoute)?;
            let route = Uri::parse(addr.uri).ok_or(Reason::BadRoute)?;
            self.secure |= route.is_sips();
            if !us(&route) {
                self.next = Some(addr.uri);
                break;
            }
            self.popped += 1;
            reader.read(&Own { user: route.user, ob: route.param(b"ob").is_some() }, &mut self.tokens);
        }
        Ok(())
    }

    /// Are there Routes to take out of the message?
    pub fn edited(&self) -> bool {
        self.popped > 0 || self.repaired()
    }

    /// The spans to cut from the message: the popped values and, after repair, the last one.
    pub fn cuts(&self, view: &View<'a>, mut cut: impl FnMut(Span)) {
        if self.single
            && let Some(field) = view.first(HeaderId::Route)
        {
            return cut(field.line());
        }
        let total = view.items(HeaderId::Route).count();
        let keep = self.popped..total - usize::from(self.repaired());
        let mut items = view.items(HeaderId::Route).enumerate().peekable();
        // Line by line: which of its values stay, the first and the last of them.
        while let Some((begin, first)) = items.next() {
            let (mut end, mut kept) = (begin, None);
            let mut next = Some((begin, first));
            while let Some((i, item)) = next {
                end = i;
                if keep.contains(&i) {
                    let (_, since) = kept.unwrap_or((item, (item, i)));
                    kept = Some((item, since));
                }
                next = items.next_if(|(_, item)| item.field == first.field);
            }
            let field = &view.fields()[first.field];
            let Some((last, (first, since))) = kept else {
                cut(field.line());
                continue;
            };
            if since > begin {
                cut(Span { start: view.value_span(field).start, end: view.span_of(first.value).start });
            }
            if keep.end <= end {
                cut(Span { start: view.span_of(last.value).end, end: view.value_span(field).end });
            }
        }
    }
}

/// Reads the tokens of our leading Route values, in order.
struct TokenReader<'a> {
    setup: &'a Setup,
    essentials: &'a Essentials<'a>,
    method: Method,
    trusted: bool,
    first: bool,
    /// Something decided already: what follows is popped unread.
    stopped: bool,
}

impl TokenReader<'_> {
    fn read(&mut self, own: &Own<'_>, tokens: &mut Tokens) {
        let first = std::mem::take(&mut self.first);
        let Some(user) = own.user.filter(|_| !self.stopped) else { return };
        if self.essentials.to_tag.is_some() && in_dialogs(self.method) {
            match RouteToken::decode(user, &self.setup.ring, self.essentials.call_id) {
                Ok(token) => {
                    if !matches!(tokens, Tokens::Route(_)) {
                        *tokens = Tokens::Route(SmallVec::new());
                    }
                    if let Tokens::Route(list) = tokens {
                        list.push(token);
                    }
                }
                Err(Fault::Foreign) => self.read_path(own, user, first, tokens),
                Err(Fault::UnknownKey) => self.stop(Tokens::Unknown { path: None }, tokens),
                Err(Fault::Forged) => self.stop(Tokens::Forged { path: false }, tokens),
            }
        } else {
            self.read_path(own, user, first, tokens);
        }
    }

    fn read_path(&mut self, own: &Own<'_>, user: &[u8], first: bool, tokens: &mut Tokens) {
        if !first || !self.trusted || matches!(self.method, Method::Register | Method::Publish) {
            return;
        }
        match PathToken::decode(user, &self.setup.ring) {
            Ok((token, key_id)) => self.stop(Tokens::Path { token, key_id, ob: own.ob }, tokens),
            Err(Fault::Foreign) => {}
            Err(Fault::UnknownKey) => self.stop(Tokens::Unknown { path: Some(own.ob) }, tokens),
            Err(Fault::Forged) => self.stop(Tokens::Forged { path: true }, tokens),
        }
    }

    fn stop(&mut self, outcome: Tokens, tokens: &mut Tokens) {
        self.stopped = true;
        *tokens = outcome;
    }
}
