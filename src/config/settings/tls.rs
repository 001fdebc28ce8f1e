//! `[tls]` and the keys of a TLS listener: which certificates it shows, whose it asks for, whom backends must prove to be
//! (SPEC 9.3). The files are read by `config::tls`; here stands what was written, and where.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use super::super::document::{Faults, Key, Place, Value, in_order};

pub(super) const LISTENER_KEYS: [&str; 5] =
    ["certificate", "private_key", "certificates", "client_certificates", "client_ca"];
pub(super) const KEYS: [&str; 8] = [
    "certificate",
    "private_key",
    "certificates",
    "client_certificates",
    "client_ca",
    "backend_ca",
    "backend_certificate",
    "backend_private_key",
];

/// A file that was named, and where.
#[derive(Clone, Debug)]
pub struct Named {
    pub path: PathBuf,
    pub place: Place,
}

/// A certificate with those above it, and its private key: two files in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: Named,
    pub key: Named,
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    #[default]
    Off,
    /// Who shows one must be known.
    Optional,
    Required,
}

/// What a TLS listener is.
#[derive(Clone, Debug, Default)]
pub struct ServerTls {
    /// The first is shown to those who ask for no name or for an unknown one.
    pub certificates: Vec<Pair>,
    pub client_certificates: ClientCertificates,
    /// Who signs those of clients; there where they are asked for.
    pub client_ca: Option<Named>,
}

/// How backends are called.
#[derive(Clone, Debug, Default)]
pub struct BackendTls {
    /// Who signs their certificates; none: the roots of the system.
    pub ca: Option<Named>,
    /// Ours, for those who ask.
    pub certificate: Option<Pair>,
}

/// `[tls]`, as far as it is not in the listeners.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub backends: BackendTls,
}

/// What a section says before another completes it.
#[derive(Default)]
pub(super) struct Written {
    certificate: Option<(Named, Range<usize>)>,
    key: Option<(Named, Range<usize>)>,
    more: Vec<Pair>,
    client_certificates: Option<(ClientCertificates, Range<usize>)>,
    client_ca: Option<Named>,
    /// The first of these keys.
    pub first: Option<Range<usize>>,
}

impl Written {
    /// Takes a key that is one of `LISTENER_KEYS`.
    pub fn take(&mut self, faults: &mut Faults<'_>, key: &Key<'_>, value: &Value<'_>, base: &Path) {
        self.first.get_or_insert_with(|| key.span());
        let name = key.get_ref().as_ref();
        match name {
            "certificate" => self.certificate = file(faults, name, value, base),
            "private_key" => self.key = file(faults, name, value, base),
            "certificates" => self.more = certificates(faults, value, base),
            "client_certificates" => {
                self.client_certificates = client_certificates(faults, value).map(|how| (how, value.span()));
            }
            _ => self.client_ca = file(faults, name, value, base).map(|(file, _)| file),
        }
    }

    fn pairs(&mut self, faults: &mut Faults<'_>) -> Vec<Pair> {
        let first = pair(faults, self.certificate.take(), self.key.take(), ["certificate", "private_key"]);
        first.into_iter().chain(std::mem::take(&mut self.more)).collect()
    }
}

/// `[tls]` with the listeners' part of it.
pub(super) fn tls(faults: &mut Faults<'_>, value: &Value<'_>, base: &Path, out: &mut Tls) -> Written {
    let mut written = Written::default();
    let Some(table) = faults.table("tls", value) else { return written };
    let (mut certificate, mut key_file) = (None, None);
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            name if LISTENER_KEYS.contains(&name) => written.take(faults, key, value, base),
            name @ "backend_ca" => out.backends.ca = file(faults, name, value, base).map(|(file, _)| file),
            name @ "backend_certificate" => certificate = file(faults, name, value, base),
            name @ "backend_private_key" => key_file = file(faults, name, value, base),
            _ => faults.unknown_key(key, "[tls]", KEYS),
        }
    }
    let names = ["backend_certificate", "backend_private_key"];
    out.backends.certificate = pair(faults, certificate, key_file, names);
    written
}

/// What each TLS listener is: what it says itself, else what `[tls]` says. `own` has for each the place of its section.
pub(super) fn complete(
    faults: &mut Faults<'_>,
    mut general: Written,
    own: Vec<(Range<usize>, Written)>,
) -> Vec<ServerTls> {
    let certificates = general.pairs(faults);
    own.into_iter()
        .map(|(span, mut written)| {
            let mut own = written.pairs(faults);
            if own.is_empty() {
                own.clone_from(&certificates);
            }
            if own.is_empty() {
                let message = "this listener has no certificate: certificate = \"sip.pem\" and private_key = \"sip.key\", \
                               here or in [tls]";
                faults.missing(span.clone(), message);
            }
            let client_ca = written.client_ca.or_else(|| general.client_ca.clone());
            let asked = written.client_certificates.or_else(|| general.client_certificates.clone());
            let (asked, at) = match asked {
                Some(asked) => asked,
                None if client_ca.is_some() => (ClientCertificates::Required, span),
                None => (ClientCertificates::Off, span),
            };
            if asked != ClientCertificates::Off && client_ca.is_none() {
                faults.error(at, "client_certificates: client_ca = \"ca.pem\" must say who signs them");
            }
            ServerTls { certificates: own, client_certificates: asked, client_ca }
        })
        .collect()
}

fn pair(
    faults: &mut Faults<'_>,
    certificate: Option<(Named, Range<usize>)>,
    key: Option<(Named, Range<usize>)>,
    names: [&str; 2],
) -> Option<Pair> {
    let [certificates, keys] = names;
    match (certificate, key) {
        (Some((certificate, _)), Some((key, _))) => Some(Pair { certificate, key }),
        (Some((_, span)), None) => {
            faults.error(span, format!("{certificates} without {keys}"));
            None
        }
        (None, Some((_, span))) => {
            faults.error(span, format!("{keys} without {certificates}"));
            None
        }
        (None, None) => None,
    }
}

/// `certificates = [{ certificate = "…", private_key = "…" }]`
fn certificates(faults: &mut Faults<'_>, value: &Value<'_>, base: &Path) -> Vec<Pair> {
    let mut out = Vec::new();
    for item in faults.array("certificates", value).into_iter().flat_map(|items| items.iter()) {
        let Some(table) = faults.table("certificates", item) else { continue };
        out.extend(one(faults, table, &item.span(), base));
    }
    out
}

fn one(faults: &mut Faults<'_>, table: &DeTable<'_>, span: &Range<usize>, base: &Path) -> Option<Pair> {
    let (mut certificate, mut key_file) = (None, None);
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            name @ "certificate" => certificate = file(faults, name, value, base),
            name @ "private_key" => key_file = file(faults, name, value, base),
            _ => faults.unknown_key(key, "certificates", ["certificate", "private_key"]),
        }
    }
    if table.is_empty() {
        faults.error(span.clone(), "certificates: certificate and private_key are missing");
    }
    pair(faults, certificate, key_file, ["certificate", "private_key"])
}

fn client_certificates(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<ClientCertificates> {
    use ClientCertificates::{Off, Optional, Required};
    faults.choice(
        "client_certificates",
        value,
        [("off", Off), ("optional", Optional), ("required", Required)],
    )
}

fn file(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, base: &Path) -> Option<(Named, Range<usize>)> {
    let text = faults.string(key, value)?;
    if text.value.is_empty() || text.value.contains('\0') {
        faults.error(text.span, format!("{key} is no path"));
        return None;
    }
    let place = faults.place(text.span.start);
    Some((Named { path: base.join(text.value), place }, text.span))
}
