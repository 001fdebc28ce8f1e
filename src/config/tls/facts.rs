//! What a certificate says of itself: whose it is, and from when to when.

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Names as SIP compares them (RFC 5922 7.1): hosts in lower case without a closing dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Hosts of subjectAltName's `sip:` URIs without a user.
    pub sip: Vec<String>,
    /// DNS names of subjectAltName; wildcards as they stand.
    pub dns: Vec<String>,
    /// Addresses of subjectAltName, 4 or 16 bytes.
    pub addresses: Vec<Vec<u8>>,
    /// Seconds since 1970.
    pub from_s: i64,
    pub until_s: i64,
}

impl Facts {
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Facts> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let mut facts = Facts {
            from_s: validity.not_before.timestamp(),
            until_s: validity.not_after.timestamp(),
            ..Facts::default()
        };
        let Some(names) = certificate.subject_alternative_name().ok()? else { return Some(facts) };
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => facts.dns.push(host(name)),
                GeneralName::IPAddress(address) => facts.addresses.push(address.to_vec()),
                GeneralName::URI(uri) => facts.sip.extend(sip_host(uri)),
                _ => {}
            }
        }
        Some(facts)
    }
}

/// For a comparison without case.
pub fn host(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The host of `sip:HOST`. With a user it is no domain's (RFC 5922 7.1); with a port or parameters it is no identity.
fn sip_host(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once(':')?;
    let whole = scheme.eq_ignore_ascii_case("sip") && !rest.is_empty();
    (whole && !rest.contains(['@', ':', ';', '?', '/'])).then(|| host(rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn rfc_5922_7_1_names_of_a_certificate() {
        let mut params = CertificateParams::new(vec!["PBX.example.com".into()]).expect("names");
        let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
        params.subject_alt_names.extend([
            uri("sip:Example.COM"),
            uri("sip:bob@example.org"),
            uri("http://x"),
        ]);
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let facts = Facts::of(certificate.der()).expect("a certificate");
        assert_eq!(facts.sip, ["example.com"]);
        assert_eq!(facts.dns, ["pbx.example.com"]);
        assert_eq!(facts.addresses, [vec![192, 0, 2, 1]]);
        assert!(facts.from_s < facts.until_s);
        assert_eq!(Facts::of(&CertificateDer::from(vec![0x30, 0x82, 1])), None);
    }
}
