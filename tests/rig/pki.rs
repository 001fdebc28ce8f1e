//! Certificates of the tests' own authorities, and what a peer of ours needs of rustls to use them.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use super::TempDir;

/// Who signs.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// The authority of a test run: the scenes' routers, phones and PBXs trust it.
pub fn authority() -> &'static Authority {
    static ONE: OnceLock<Authority> = OnceLock::new();
    ONE.get_or_init(|| Authority::new("tests"))
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("random numbers");
        Authority { issuer: CertifiedIssuer::self_signed(params, key).expect("sound parameters") }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// For these hosts and addresses.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names of the test's");
        change(&mut params);
        let key = KeyPair::generate().expect("random numbers");
        let certificate = params.signed_by(&key, &self.issuer).expect("sound parameters");
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        roots
    }

    /// A client that trusts this authority, and shows a certificate where it has one.
    pub fn client(&self, shows: Option<&Issued>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots());
        Arc::new(match shows {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                builder.with_client_auth_cert(vec![issued.der.clone()], issued.key_der()).expect("a pair")
            }
        })
    }

    /// A server that shows this certificate, and wants clients' of this authority where it `asks`.
    pub fn server(&self, shows: &Issued, asks: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = if asks {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider);
            builder.with_client_cert_verifier(verifier.build().expect("roots"))
        } else {
            builder.with_no_client_auth()
        };
        let shown = builder.with_single_cert(vec![shows.der.clone()], shows.key_der());
        Arc::new(shown.expect("a pair"))
    }
}

impl Issued {
    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }

    /// Writes `{name}.pem` and `{name}.key`, the latter with mode 0600.
    pub fn write(&self, dir: &TempDir, name: &str) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let key = dir.write(&format!("{name}.key"), &self.key);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        (dir.write(&format!("{name}.pem"), &self.certificate), key)
    }
}

/// What a party at this address shows and trusts.
pub fn party(ip: IpAddr) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let issued = authority().issue(&[&ip.to_string()]);
    (authority().client(Some(&issued)), authority().server(&issued, false))
}
