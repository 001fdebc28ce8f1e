//! Which certificate a client sees: that of the name it asks for (SNI, RFC 6066 3), else the first.
//!
//! A certificate has its DNS names and the hosts of its `sip:` URIs; `*.example.com` is one label. Where two have a name,
//! the first in the file shows it.

use std::{fmt, sync::Arc};

use ahash::HashMap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::facts::{Facts, host};

pub struct Choice {
    first: Arc<CertifiedKey>,
    /// Lower case; those with a wildcard begin at the dot.
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

impl Choice {
    /// `None` where there is none to choose.
    pub fn of(pairs: Vec<(Arc<CertifiedKey>, Facts)>) -> Option<Choice> {
        let first = pairs.first()?.0.clone();
        let mut by_name = HashMap::default();
        for (certified, facts) in pairs {
            for name in facts.dns.iter().chain(&facts.sip) {
                let name = name.strip_prefix('*').unwrap_or(name).to_owned();
                by_name.entry(name).or_insert_with(|| certified.clone());
            }
        }
        Some(Choice { first, by_name })
    }

    fn named(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = host(name);
        let wild = || self.by_name.get(&name[name.find('.')?..]);
        self.by_name.get(&name).or_else(wild)
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.named(name));
        Some(named.unwrap_or(&self.first).clone())
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Choice").field("names", &self.by_name.len()).finish()
    }
}
