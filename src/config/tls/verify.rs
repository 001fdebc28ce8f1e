//! Is a backend whom the table means? Its certificate must lead to a root that we trust and be of the host in the
//! backend's URI, by the rules of SIP (RFC 5922 7.1, 7.2), which are not those of the web: `sip:` URIs of subjectAltName
//! go before DNS names, and a wildcard matches nothing. A host that is an address must stand there as an address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::facts::{Facts, host};

/// What the certificate of a backend must name: the host of its URI as the table writes it, else its address.
pub fn name_of(host: Option<&str>, address: SocketAddr) -> ServerName<'static> {
    let named = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    named.unwrap_or(ServerName::IpAddress(address.ip().to_canonical().into()))
}

#[derive(Debug)]
pub struct Backends {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Backends {
    pub fn new(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Backends {
        Backends { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Backends {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, self.algorithms.all)?;
        let facts = Facts::of(certificate).ok_or(CertificateError::BadEncoding)?;
        if is_of(&facts, name) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn is_of(facts: &Facts, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(name) => {
            let name = host(name.as_ref());
            let names = if facts.sip.is_empty() { &facts.dns } else { &facts.sip };
            names.contains(&name)
        }
        ServerName::IpAddress(address) => {
            let of_sip = |text: &String| text.trim_matches(['[', ']']).parse() == Ok(IpAddr::from(*address));
            let bytes = match IpAddr::from(*address) {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            facts.addresses.contains(&bytes) || facts.sip.iter().any(of_sip)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(sip: &[&str], dns: &[&str]) -> Facts {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Facts { sip: own(sip), dns: own(dns), addresses: vec![vec![192, 0, 2, 1]], from_s: 0, until_s: 0 }
    }

    #[test]
    fn rfc_5922_7_2_whose_certificate_it_is() {
        let is_of = |facts: &Facts, name: &str| {
            is_of(facts, &name_of(Some(name), "203.0.113.9:5061".parse().expect("an address")))
        };
        let by_dns = facts(&[], &["pbx.example.com", "*.example.org"]);
        assert!(is_of(&by_dns, "pbx.example.com") && is_of(&by_dns, "PBX.Example.com"));
        assert!(!is_of(&by_dns, "example.com") && !is_of(&by_dns, "a.pbx.example.com"));
        assert!(!is_of(&by_dns, "a.example.org"), "no wildcards (7.2)");
        let by_uri = facts(&["example.com"], &["pbx.example.com"]);
        assert!(is_of(&by_uri, "example.com"));
        assert!(!is_of(&by_uri, "pbx.example.com"), "where there is a sip URI, DNS names do not count (7.1)");
        assert!(is_of(&by_dns, "192.0.2.1") && !is_of(&by_dns, "192.0.2.2"));
        assert!(!is_of(&facts(&[], &["192.0.2.2"]), "192.0.2.2"), "an address is no DNS name");
    }

    #[test]
    fn a_host_that_is_no_name_is_taken_by_its_address() {
        let at: SocketAddr = "[2001:db8::1]:5061".parse().expect("an address");
        assert_eq!(name_of(None, at), name_of(Some("2001:db8::1"), at));
        assert_eq!(name_of(Some("not a host"), at), name_of(None, at));
    }
}
