//! What is valid but asks for trouble: a listener that believes UDP sources on a public address (SPEC 1.1).

use std::net::IpAddr;

use super::{
    super::diagnostic::{Diagnostic, Severity},
    Settings, Side,
};
use crate::wire::Transport;

/// Warnings about valid settings, for `check`, `doctor` and the start of `run`.
pub fn warnings(settings: &Settings) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    for (index, listen) in settings.listen.iter().enumerate() {
        if listen.side == Side::Clients || listen.transport != Transport::Udp {
            continue;
        }
        let what = match listen.address.ip() {
            ip if ip.is_unspecified() => "every address of this machine".to_owned(),
            ip if is_public(ip) => format!("the public address {ip}"),
            _ => continue,
        };
        let side = if listen.side == Side::Both { "both" } else { "backends" };
        let place = settings.origin.listen.get(index).cloned().unwrap_or_default();
        out.push(Diagnostic {
            severity: Severity::Warning,
            file: if settings.origin.file.is_empty() {
                "the default settings".to_owned()
            } else {
                settings.origin.file.clone()
            },
            line: place.line,
            column: place.column,
            message: format!(
                "listener \"{}\" has side = \"{side}\" on {what}: a UDP source can be forged, so anybody could \
                 pass for a backend; use one listener for clients and another, inside, for backends",
                listen.name
            ),
            text: place.text,
        });
    }
    out
}

/// Reachable from anywhere: neither loopback, private, shared, link-local nor unique local.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            let [first, ..] = ip.segments();
            let inside = first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80;
            !(ip.is_loopback() || ip.is_unspecified() || inside)
        }
    }
}
