//! The certificates and keys that tidings.toml names: read, checked against each other, and made into what handshakes use
//! (SPEC 9.3).
//!
//! `load` is called by `check`, at start and with each reload of the table; either all files are sound and there is a new
//! `Credentials`, or every fault is told with the place where its file is named. `facts` reads names and dates of a
//! certificate, `choice` picks the one that a client asked for, `verify` decides whether a backend is whom the table
//! means. Nothing here keeps or replaces anything: `control` does.

mod choice;
mod facts;
mod verify;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

pub use self::verify::name_of;
use self::{choice::Choice, facts::Facts, verify::Backends};
use super::{
    diagnostic::{Diagnostic, Severity},
    settings::{
        Settings,
        tls::{ClientCertificates, Named, Pair, ServerTls},
    },
};

/// A certificate that ends within so many seconds is told of.
const SOON_S: i64 = 14 * 86_400;
/// Tickets of one server that a client of ours keeps.
const TICKETS: usize = 256;

/// What handshakes use; replaced as a whole.
#[derive(Clone, Default)]
pub struct Credentials {
    /// By listener.
    servers: Vec<Option<Arc<ServerConfig>>>,
    client: Option<Arc<ClientConfig>>,
}

/// The outcome of a load that found no fault.
#[derive(Default)]
pub struct Loaded {
    pub credentials: Credentials,
    pub warnings: Vec<Diagnostic>,
    /// When the first of our certificates expires, in seconds since 1970.
    pub until_s: Option<u64>,
}

impl Credentials {
    /// What a listener with TLS shows.
    pub fn server(&self, listener: u8) -> Option<&Arc<ServerConfig>> {
        self.servers.get(usize::from(listener))?.as_ref()
    }

    /// How backends are called; there where any listener has TLS.
    pub fn client(&self) -> Option<&Arc<ClientConfig>> {
        self.client.as_ref()
    }
}

/// Reads all of it. `unix_s` judges dates.
pub fn load(settings: &Settings, unix_s: u64) -> Result<Loaded, Vec<Diagnostic>> {
    if !settings.listen.iter().any(|listen| listen.tls.is_some()) {
        return Ok(Loaded::default());
    }
    let mut reader = Reader { file: &settings.origin.file, unix_s, until_s: None, list: Vec::new() };
    let provider = Arc::new(ring::default_provider());
    let servers = settings
        .listen
        .iter()
        .map(|listen| reader.server(listen.tls.as_ref()?, &provider).map(Arc::new))
        .collect();
    let client = reader.client(settings, &provider).map(Arc::new);
    // Listeners may share files.
    reader.list.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
    reader.list.dedup();
    if reader.list.iter().any(Diagnostic::is_error) {
        return Err(reader.list);
    }
    let Reader { until_s, list: warnings, .. } = reader;
    Ok(Loaded { credentials: Credentials { servers, client }, warnings, until_s })
}

/// The files that `load` reads.
pub fn files(settings: &Settings) -> Vec<PathBuf> {
    let servers = settings.listen.iter().filter_map(|listen| listen.tls.as_ref());
    if servers.clone().next().is_none() {
        return Vec::new();
    }
    let pairs = servers.clone().flat_map(|server| &server.certificates);
    let backends = &settings.tls.backends;
    let named = pairs.chain(&backends.certificate).flat_map(|pair| [&pair.certificate, &pair.key]);
    let authorities = servers.filter_map(|server| server.client_ca.as_ref()).chain(&backends.ca);
    let mut files: Vec<PathBuf> = named.chain(authorities).map(|file| file.path.clone()).collect();
    files.sort();
    files.dedup();
    files
}

struct Reader<'s> {
    /// tidings.toml
    file: &'s str,
    unix_s: u64,
    until_s: Option<u64>,
    list: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn server(&mut self, tls: &ServerTls, provider: &Arc<CryptoProvider>) -> Option<ServerConfig> {
        let mut pairs = Vec::new();
        for pair in &tls.certificates {
            pairs.extend(self.pair(pair, provider));
        }
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3");
        let builder = match (&tls.client_ca, tls.client_certificates) {
            (None, _) | (_, ClientCertificates::Off) => builder.with_no_client_auth(),
            (Some(ca), asked) => {
                let roots = Arc::new(self.authorities(ca)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                let verifier = match asked {
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                    _ => verifier,
                };
                match verifier.build() {
                    Ok(verifier) => builder.with_client_cert_verifier(verifier),
                    Err(error) => {
                        self.error(ca, format!("cannot judge certificates by it: {error}"));
                        return None;
                    }
                }
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Choice::of(pairs)?));
        // Of this configuration alone: who came by another one is judged anew.
        match ring::Ticketer::new() {
            Ok(ticketer) => config.ticketer = ticketer,
            Err(error) => tracing::warn!(%error, "no session tickets: each handshake is a full one"),
        }
        config.send_tls13_tickets = 1;
        Some(config)
    }

    fn client(&mut self, settings: &Settings, provider: &Arc<CryptoProvider>) -> Option<ClientConfig> {
        let tls = &settings.tls.backends;
        let roots = match &tls.ca {
            Some(ca) => self.authorities(ca)?,
            None => roots_of_the_system(),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Backends::new(roots, provider)));
        let mut config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let (certified, _) = self.pair(pair, provider)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
            }
        };
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Some(config)
    }

    fn pair(&mut self, pair: &Pair, provider: &Arc<CryptoProvider>) -> Option<(Arc<CertifiedKey>, Facts)> {
        let chain = self.certificates(&pair.certificate);
        let key = self.key(&pair.key);
        let (chain, key) = (chain?, key?);
        let facts = match Facts::of(&chain[0]) {
            Some(facts) => facts,
            None => {
                self.error(&pair.certificate, "its first certificate is no X.509 certificate".to_owned());
                return None;
            }
        };
        self.dates(&pair.certificate, &facts);
        match CertifiedKey::from_der(chain, key, provider) {
            Ok(certified) => Some((Arc::new(certified), facts)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                let certificate = pair.certificate.path.display();
                self.error(&pair.key, format!("is not the key of the certificate in {certificate}"));
                None
            }
            Err(error) => {
                self.error(&pair.key, format!("cannot be used: {error}"));
                None
            }
        }
    }

    fn dates(&mut self, file: &Named, facts: &Facts) {
        let now = i64::try_from(self.unix_s).unwrap_or(i64::MAX);
        let left = facts.until_s - now;
        let until = u64::try_from(facts.until_s).unwrap_or(0);
        self.until_s = Some(self.until_s.map_or(until, |first| first.min(until)));
        if left < 0 {
            self.warn(file, format!("expired {}: phones will refuse it", days_ago(-left)));
        } else if facts.from_s > now {
            self.warn(file, "is not valid yet: phones will refuse it".to_owned());
        } else if left < SOON_S {
            self.warn(file, format!("expires in {} days", left / 86_400));
        }
    }

    fn certificates(&mut self, file: &Named) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.read(file)?;
        let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Ok(found) if found.is_empty() => {
                self.error(file, "there is no certificate in it (PEM, BEGIN CERTIFICATE)".to_owned());
                None
            }
            Ok(found) => Some(found),
            Err(error) => {
                self.error(file, format!("is not sound PEM: {error}"));
                None
            }
        }
    }

    fn key(&mut self, file: &Named) -> Option<PrivateKeyDer<'static>> {
        let bytes = self.read(file)?;
        if let Ok(meta) = std::fs::metadata(&file.path) {
            let mode = meta.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 {
                self.warn(
                    file,
                    format!("has mode {mode:04o}: others could read the private key; chmod 600 it"),
                );
            }
        }
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => Some(key),
            Err(pem::Error::NoItemsFound) if memchr::memmem::find(&bytes, b"ENCRYPTED").is_some() => {
                self.error(file, "is encrypted; nobody is here to type a pass phrase".to_owned());
                None
            }
            Err(pem::Error::NoItemsFound) => {
                self.error(file, "there is no private key in it (PEM, BEGIN PRIVATE KEY)".to_owned());
                None
            }
            Err(error) => {
                self.error(file, format!("is not sound PEM: {error}"));
                None
            }
        }
    }

    fn authorities(&mut self, file: &Named) -> Option<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(file)? {
            if let Err(error) = roots.add(certificate) {
                self.error(file, format!("holds a certificate that can sign nothing: {error}"));
                return None;
            }
        }
        Some(roots)
    }

    fn read(&mut self, file: &Named) -> Option<Vec<u8>> {
        match std::fs::read(&file.path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error(file, format!("cannot be read: {error}"));
                None
            }
        }
    }

    fn error(&mut self, file: &Named, message: String) {
        self.tell(Severity::Error, file, &message);
    }

    fn warn(&mut self, file: &Named, message: String) {
        self.tell(Severity::Warning, file, &message);
    }

    fn tell(&mut self, severity: Severity, file: &Named, message: &str) {
        self.list.push(Diagnostic {
            severity,
            file: self.file.to_owned(),
            line: file.place.line,
            column: file.place.column,
            message: format!("{} {message}", shown(&file.path)),
            text: file.place.text.clone(),
        });
    }
}

fn shown(path: &Path) -> String {
    format!("{}:", path.display())
}

fn days_ago(seconds: i64) -> String {
    match seconds / 86_400 {
        0 => "less than a day ago".to_owned(),
        1 => "a day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

/// What cannot be read of them is logged: a backend that needs it cannot be called.
fn roots_of_the_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a part of the system's root certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}
